package core

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/awslabs/operatorpkg/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/karpenter/kwok/apis/v1alpha1"
	v1 "sigs.k8s.io/karpenter/pkg/apis/v1"
	"sigs.k8s.io/karpenter/pkg/cloudprovider"
	"sigs.k8s.io/karpenter/pkg/scheduling"
)

// fakeNode is the annotation by which kwok plays a node's kubelet.
const fakeNode = "kwok.x-k8s.io/node"

// cloud stands in for EC2. Its instances, how it behaves and what it was asked for are files of one
// folder, so that it outlives a restart of Karpenter, as EC2 does.
type cloud struct {
	client client.Client
	types  []*cloudprovider.InstanceType
	ledger *ledger
}

var _ cloudprovider.CloudProvider = &cloud{}

func newCloud(client client.Client, types []*cloudprovider.InstanceType, folder string) (*cloud, error) {
	if err := os.MkdirAll(filepath.Join(folder, "instances"), 0o755); err != nil {
		return nil, err
	}
	return &cloud{client: client, types: types, ledger: &ledger{folder: folder}}, nil
}

// Create buys the cheapest instance that fits, or says that there is no capacity.
func (c *cloud) Create(ctx context.Context, claim *v1.NodeClaim) (*v1.NodeClaim, error) {
	behavior, err := c.ledger.behavior()
	if err != nil {
		return nil, err
	}
	if err := sleep(ctx, behavior.LaunchMilliseconds); err != nil {
		return nil, err
	}
	chosen, offering := c.cheapest(claim, behavior)
	if offering == nil {
		c.ledger.write(asked{What: "refuse", Claim: claim.Name})
		return nil, cloudprovider.NewInsufficientCapacityError(errors.New("no capacity for any offering that the claim allows"))
	}
	node := newNode(claim, chosen, offering, behavior)
	bought := instance{
		Claim:     claim.Name,
		Node:      node,
		Registers: time.Now().Add(milliseconds(behavior.RegistrationMilliseconds)),
	}
	if err := c.ledger.keep(bought); err != nil {
		return nil, err
	}
	c.ledger.write(bought.asked("launch"))
	go c.register(context.WithoutCancel(ctx), bought)
	return bought.claim(), nil
}

// Delete asks for the end of an instance; Karpenter asks again until it is gone.
func (c *cloud) Delete(ctx context.Context, claim *v1.NodeClaim) error {
	behavior, err := c.ledger.behavior()
	if err != nil {
		return err
	}
	return c.ledger.terminate(claim.Status.ProviderID, milliseconds(behavior.TerminationMilliseconds))
}

// Get finds an instance.
func (c *cloud) Get(_ context.Context, provider string) (*v1.NodeClaim, error) {
	found, err := c.ledger.find(provider)
	if err != nil {
		return nil, err
	}
	return found.claim(), nil
}

// List finds all instances.
func (c *cloud) List(context.Context) ([]*v1.NodeClaim, error) {
	all, err := c.ledger.all()
	claims := make([]*v1.NodeClaim, 0, len(all))
	for _, one := range all {
		claims = append(claims, one.claim())
	}
	return claims, err
}

// GetInstanceTypes says what is on offer. What was refused, or is called unavailable, is not.
func (c *cloud) GetInstanceTypes(context.Context, *v1.NodePool) ([]*cloudprovider.InstanceType, error) {
	behavior, err := c.ledger.behavior()
	if err != nil {
		return nil, err
	}
	offered := make([]*cloudprovider.InstanceType, 0, len(c.types))
	for _, one := range c.types {
		offerings := make(cloudprovider.Offerings, 0, len(one.Offerings))
		for _, offering := range one.Offerings {
			offerings = append(offerings, &cloudprovider.Offering{
				Requirements: offering.Requirements,
				Price:        offering.Price,
				Available:    !behavior.isUnavailable(one.Name, offering),
			})
		}
		offered = append(offered, &cloudprovider.InstanceType{
			Name:         one.Name,
			Requirements: one.Requirements,
			Offerings:    offerings,
			Capacity:     one.Capacity,
			Overhead:     one.Overhead,
		})
	}
	return offered, nil
}

// IsDrifted says no: the core finds drift of the NodePool itself.
func (c *cloud) IsDrifted(context.Context, *v1.NodeClaim) (cloudprovider.DriftReason, error) {
	return "", nil
}

// RepairPolicies are none.
func (c *cloud) RepairPolicies() []cloudprovider.RepairPolicy { return nil }

// Name is what metrics call it.
func (c *cloud) Name() string { return "stand-in" }

// GetSupportedNodeClasses is upstream's class for nodes of kwok.
func (c *cloud) GetSupportedNodeClasses() []status.Object {
	return []status.Object{&v1alpha1.KWOKNodeClass{}}
}

// Start brings up the nodes of instances that were bought before a restart.
func (c *cloud) Start(ctx context.Context) error {
	all, err := c.ledger.all()
	for _, one := range all {
		go c.register(ctx, one)
	}
	return err
}

func (c *cloud) cheapest(claim *v1.NodeClaim, behavior behavior) (*cloudprovider.InstanceType, *cloudprovider.Offering) {
	wanted := scheduling.NewNodeSelectorRequirementsWithMinValues(claim.Spec.Requirements...)
	var chosen *cloudprovider.InstanceType
	var cheapest *cloudprovider.Offering
	var refused []pool
	for _, one := range c.types {
		if one.Requirements.Intersects(wanted) != nil {
			continue
		}
		for _, offering := range one.Offerings.Compatible(wanted) {
			if behavior.refuses(one.Name, offering) {
				refused = append(refused, poolOf(one.Name, offering))
				continue
			}
			if cheapest == nil || offering.Price < cheapest.Price {
				chosen, cheapest = one, offering
			}
		}
	}
	if cheapest == nil {
		c.ledger.learn(refused)
	}
	return chosen, cheapest
}

// register makes the node of an instance when its time has come, as its kubelet would.
func (c *cloud) register(ctx context.Context, bought instance) {
	if err := sleep(ctx, time.Until(bought.Registers).Milliseconds()); err != nil {
		return
	}
	for range 100 {
		if _, err := c.ledger.find(bought.Node.Spec.ProviderID); err != nil || bought.Registered {
			return
		}
		err := c.client.Create(ctx, bought.Node.DeepCopy())
		if err == nil || apierrors.IsAlreadyExists(err) {
			bought.Registered = true
			err = c.ledger.keep(bought)
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		log.FromContext(ctx).Error(err, "the node of an instance was not made", "node", bought.Node.Name)
		if err := sleep(ctx, 200); err != nil {
			return
		}
	}
}

func newNode(claim *v1.NodeClaim, chosen *cloudprovider.InstanceType, offering *cloudprovider.Offering, behavior behavior) *corev1.Node {
	id := newInstanceID()
	zone := offering.Requirements.Get(corev1.LabelTopologyZone).Any()
	name := fmt.Sprintf("ip-10-%d-%d-%d.ec2.internal", id[5], id[6], id[7])
	labels := map[string]string{}
	maps.Copy(labels, claim.Labels)
	for _, from := range []scheduling.Requirements{chosen.Requirements, offering.Requirements} {
		for _, requirement := range from {
			if requirement.Operator() == corev1.NodeSelectorOpIn && requirement.Len() == 1 {
				labels[requirement.Key] = requirement.Any()
			}
		}
	}
	labels[corev1.LabelHostname] = name
	labels[corev1.LabelTopologyRegion] = zone[:len(zone)-1]
	capacity, allocatable := chosen.Capacity.DeepCopy(), chosen.Allocatable().DeepCopy()
	for resource, quantity := range behavior.Reports[chosen.Name] {
		capacity[resource], allocatable[resource] = quantity, quantity
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: map[string]string{fakeNode: "fake"}},
		Spec: corev1.NodeSpec{
			ProviderID: fmt.Sprintf("aws:///%s/i-0%x", zone, id),
			Taints:     []corev1.Taint{v1.UnregisteredNoExecuteTaint},
		},
		Status: corev1.NodeStatus{Capacity: capacity, Allocatable: allocatable, Phase: corev1.NodePending},
	}
}

func sleep(ctx context.Context, forMilliseconds int64) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(milliseconds(forMilliseconds)):
		return nil
	}
}

func milliseconds(count int64) time.Duration { return time.Duration(count) * time.Millisecond }
