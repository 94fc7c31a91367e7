package core

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1 "sigs.k8s.io/karpenter/pkg/apis/v1"
	"sigs.k8s.io/karpenter/pkg/cloudprovider"
)

// ledger is the folder of the cloud: `behavior.json` is written by tests and read before each
// request, `asked.jsonl` is written here, `instances` holds a file for each instance, and a file
// `gone-<instance>` says that an instance was taken.
type ledger struct {
	folder string
	lock   sync.Mutex
	// learned is what was refused since `behavior.json` was written.
	learned []pool
	written time.Time
}

// behavior is how the cloud behaves from now on.
type behavior struct {
	// Refused offerings have no capacity when they are bought, which Karpenter is not told before.
	Refused []pool
	// Unavailable offerings have none, and Karpenter knows it, as after an interruption.
	Unavailable []pool
	// Reports is what nodes of an instance type say that they have beyond its own resources, as a
	// device plugin does that makes slices.
	Reports                  map[string]corev1.ResourceList
	LaunchMilliseconds       int64
	RegistrationMilliseconds int64
	TerminationMilliseconds  int64
}

// pool names offerings; what is empty is any.
type pool struct {
	InstanceType string
	Zone         string
	CapacityType string
}

// instance is one that was bought.
type instance struct {
	Claim       string
	Node        *corev1.Node
	Registers   time.Time
	Registered  bool
	Terminating *time.Time
}

// asked is a line about what the cloud was asked for.
type asked struct {
	Time         time.Time `json:"time"`
	What         string    `json:"what"`
	Claim        string    `json:"claim"`
	Instance     string    `json:"instance"`
	Node         string    `json:"node"`
	InstanceType string    `json:"instanceType"`
	Zone         string    `json:"zone"`
	CapacityType string    `json:"capacityType"`
}

func (b behavior) refuses(instanceType string, offering *cloudprovider.Offering) bool {
	return names(b.Refused, instanceType, offering) || b.isUnavailable(instanceType, offering)
}

func (b behavior) isUnavailable(instanceType string, offering *cloudprovider.Offering) bool {
	return names(b.Unavailable, instanceType, offering)
}

func names(pools []pool, instanceType string, offering *cloudprovider.Offering) bool {
	named := poolOf(instanceType, offering)
	for _, one := range pools {
		if fits(one.InstanceType, named.InstanceType) && fits(one.Zone, named.Zone) && fits(one.CapacityType, named.CapacityType) {
			return true
		}
	}
	return false
}

func poolOf(instanceType string, offering *cloudprovider.Offering) pool {
	return pool{
		InstanceType: instanceType,
		Zone:         offering.Requirements.Get(corev1.LabelTopologyZone).Any(),
		CapacityType: offering.Requirements.Get(v1.CapacityTypeLabelKey).Any(),
	}
}

func fits(wanted, has string) bool { return wanted == "" || wanted == has }

func (l *ledger) behavior() (behavior, error) {
	l.lock.Lock()
	defer l.lock.Unlock()
	var read behavior
	path := filepath.Join(l.folder, "behavior.json")
	about, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return read, nil
	}
	if err != nil {
		return read, err
	}
	if !about.ModTime().Equal(l.written) {
		l.written, l.learned = about.ModTime(), nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return read, err
	}
	err = json.Unmarshal(text, &read)
	read.Unavailable = append(read.Unavailable, l.learned...)
	return read, err
}

// learn keeps what was refused from being offered, as the AWS provider does for three minutes: who
// asks again asks for something else.
func (l *ledger) learn(refused []pool) {
	l.lock.Lock()
	defer l.lock.Unlock()
	l.learned = append(l.learned, refused...)
}

// write adds a line to what was asked. A test that misses it fails, so that no error is lost.
func (l *ledger) write(line asked) {
	l.lock.Lock()
	defer l.lock.Unlock()
	line.Time = time.Now().UTC()
	text, _ := json.Marshal(line)
	file, err := os.OpenFile(filepath.Join(l.folder, "asked.jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return
	}
	defer file.Close()
	_, _ = file.Write(append(text, '\n'))
}

func (l *ledger) keep(one instance) error {
	l.lock.Lock()
	defer l.lock.Unlock()
	return l.put(one)
}

func (l *ledger) put(one instance) error {
	text, err := json.Marshal(one)
	if err != nil {
		return err
	}
	path := l.path(one.Node.Spec.ProviderID)
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// terminate notes that the end of an instance was asked for, and says when it is gone.
func (l *ledger) terminate(provider string, takes time.Duration) error {
	found, err := l.find(provider)
	if err != nil {
		return err
	}
	if found.Terminating == nil {
		l.write(found.asked("terminate"))
		now := time.Now()
		found.Terminating = &now
		if err := l.keep(found); err != nil {
			return err
		}
	}
	if time.Since(*found.Terminating) < takes {
		return nil
	}
	l.lock.Lock()
	defer l.lock.Unlock()
	if err := os.Remove(l.path(provider)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return gone(provider)
}

func (l *ledger) find(provider string) (instance, error) {
	l.lock.Lock()
	defer l.lock.Unlock()
	return l.read(l.path(provider))
}

func (l *ledger) all() ([]instance, error) {
	l.lock.Lock()
	defer l.lock.Unlock()
	paths, err := filepath.Glob(filepath.Join(l.folder, "instances", "i-*.json"))
	var all []instance
	for _, path := range paths {
		one, failed := l.read(path)
		if cloudprovider.IsNodeClaimNotFoundError(failed) {
			continue
		}
		err = errors.Join(err, failed)
		all = append(all, one)
	}
	return all, err
}

func (l *ledger) read(path string) (instance, error) {
	var read instance
	id := strings.TrimSuffix(filepath.Base(path), ".json")
	if _, err := os.Stat(filepath.Join(l.folder, "gone-"+id)); err == nil {
		return read, gone(id)
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return read, gone(id)
	}
	if err != nil {
		return read, err
	}
	return read, json.Unmarshal(text, &read)
}

func (l *ledger) path(provider string) string {
	return filepath.Join(l.folder, "instances", instanceOf(provider)+".json")
}

// claim is what the cloud tells Karpenter about an instance.
func (one instance) claim() *v1.NodeClaim {
	made := metav1.NewTime(one.Registers)
	return &v1.NodeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: one.Claim, Labels: one.Node.Labels, CreationTimestamp: made},
		Status: v1.NodeClaimStatus{
			ProviderID:  one.Node.Spec.ProviderID,
			Capacity:    one.Node.Status.Capacity,
			Allocatable: one.Node.Status.Allocatable,
		},
	}
}

func (one instance) asked(what string) asked {
	return asked{
		What:         what,
		Claim:        one.Claim,
		Instance:     instanceOf(one.Node.Spec.ProviderID),
		Node:         one.Node.Name,
		InstanceType: one.Node.Labels[corev1.LabelInstanceTypeStable],
		Zone:         one.Node.Labels[corev1.LabelTopologyZone],
		CapacityType: one.Node.Labels[v1.CapacityTypeLabelKey],
	}
}

// instanceOf is the last part of a provider id.
func instanceOf(provider string) string { return provider[strings.LastIndex(provider, "/")+1:] }

func newInstanceID() [8]byte {
	var id [8]byte
	_, _ = rand.Read(id[:]) // Never fails.
	return id
}

func gone(what string) error {
	return cloudprovider.NewNodeClaimNotFoundError(errors.New("instance `" + instanceOf(what) + "` is gone"))
}
