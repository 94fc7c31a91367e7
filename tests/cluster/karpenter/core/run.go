// Package core runs the controllers of Karpenter's core as its own main does, with two differences:
// what it serves is served on loopback only (upstream's operator takes every interface), and the
// cloud is a stand-in.
package core

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/awslabs/operatorpkg/controller"
	"github.com/awslabs/operatorpkg/serrors"
	"github.com/go-logr/logr"
	"github.com/go-logr/zapr"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	v1 "sigs.k8s.io/karpenter/pkg/apis/v1"
	"sigs.k8s.io/karpenter/pkg/cloudprovider"
	"sigs.k8s.io/karpenter/pkg/cloudprovider/overlay"
	"sigs.k8s.io/karpenter/pkg/controllers"
	"sigs.k8s.io/karpenter/pkg/controllers/nodeoverlay"
	"sigs.k8s.io/karpenter/pkg/controllers/state"
	"sigs.k8s.io/karpenter/pkg/events"
	"sigs.k8s.io/karpenter/pkg/operator/injection"
	"sigs.k8s.io/karpenter/pkg/operator/logging"
	"sigs.k8s.io/karpenter/pkg/operator/options"
)

// Beside is what a controller that runs beside the core's is made from.
type Beside struct {
	Manager  manager.Manager
	Cloud    cloudprovider.CloudProvider
	Recorder events.Recorder
	Clock    clock.Clock
}

// More makes controllers that run beside the core's.
type More func(context.Context, Beside) []controller.Controller

// Run starts Karpenter and returns when it is asked to end.
//
// INSTANCE_TYPES names the file of instance types, CLOUD the folder of the stand-in cloud; the rest
// are Karpenter's own options.
func Run(more ...More) {
	ctx := injection.WithOptionsOrDie(ctrl.SetupSignalHandler(), options.Injectables...)
	logger := serrors.NewLogger(zapr.NewLogger(logging.NewLogger(ctx, "controller")))
	log.SetLogger(logger)
	klog.SetLogger(logger)
	if err := run(log.IntoContext(ctx, logger), logger, more); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, logger logr.Logger, more []More) error {
	manager, err := newManager(ctx, logger)
	if err != nil {
		return fmt.Errorf("the manager was not made: %w", err)
	}
	types, err := readInstanceTypes(os.Getenv("INSTANCE_TYPES"))
	if err != nil {
		return fmt.Errorf("the instance types were not read: %w", err)
	}
	cloud, err := newCloud(manager.GetClient(), types, os.Getenv("CLOUD"))
	if err != nil {
		return fmt.Errorf("the cloud was not made: %w", err)
	}
	store := nodeoverlay.NewInstanceTypeStore()
	overlaid := overlay.Decorate(cloud, manager.GetClient(), store)
	recorder := events.NewRecorder(manager.GetEventRecorderFor("karpenter")) //nolint:staticcheck // Karpenter's own.
	now := clock.RealClock{}
	cluster := state.NewCluster(now, manager.GetClient(), overlaid)
	all := controllers.NewControllers(ctx, manager, now, manager.GetClient(), recorder, overlaid, cloud, cluster, store)
	for _, make := range more {
		all = append(all, make(ctx, Beside{manager, overlaid, recorder, now})...)
	}
	for _, one := range all {
		if err := one.Register(ctx, manager); err != nil {
			return fmt.Errorf("a controller was not registered: %w", err)
		}
	}
	if err := manager.Add(cloud); err != nil {
		return err
	}
	return manager.Start(ctx)
}

func newManager(ctx context.Context, logger logr.Logger) (manager.Manager, error) {
	chosen := options.FromContext(ctx)
	config, err := ctrl.GetConfig()
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = float32(chosen.KubeClientQPS), chosen.KubeClientBurst
	config.UserAgent = "karpenter"
	nodeLeases := cache.ByObject{Field: fields.SelectorFromSet(fields.Set{"metadata.namespace": corev1.NamespaceNodeLease})}
	made, err := ctrl.NewManager(config, ctrl.Options{
		Logger:                 logging.IgnoreDebugEvents(logger),
		Metrics:                server.Options{BindAddress: fmt.Sprintf("127.0.0.1:%d", chosen.MetricsPort)},
		HealthProbeBindAddress: fmt.Sprintf("127.0.0.1:%d", chosen.HealthProbePort),
		BaseContext: func() context.Context {
			return injection.WithOptionsOrDie(log.IntoContext(context.Background(), logger), options.Injectables...)
		},
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{&coordinationv1.Lease{}: nodeLeases}},
	})
	if err != nil {
		return nil, err
	}
	ready := func(request *http.Request) error {
		if !made.GetCache().WaitForCacheSync(request.Context()) {
			return errors.New("the caches are not filled yet")
		}
		return nil
	}
	return made, errors.Join(index(ctx, made), made.AddReadyzCheck("caches", ready), made.AddHealthzCheck("ping", healthz.Ping))
}

// index adds the fields that Karpenter's controllers look objects up by.
func index(ctx context.Context, manager manager.Manager) error {
	const class = "spec.nodeClassRef."
	const pool = "spec.template.spec.nodeClassRef."
	claimClass := func(object client.Object) *v1.NodeClassReference { return object.(*v1.NodeClaim).Spec.NodeClassRef }
	poolClass := func(object client.Object) *v1.NodeClassReference {
		return object.(*v1.NodePool).Spec.Template.Spec.NodeClassRef
	}
	fields := []struct {
		kind  client.Object
		field string
		value func(client.Object) string
	}{
		{&corev1.Pod{}, "spec.nodeName", func(object client.Object) string { return object.(*corev1.Pod).Spec.NodeName }},
		{&corev1.Node{}, "spec.providerID", func(object client.Object) string { return object.(*corev1.Node).Spec.ProviderID }},
		{&storagev1.VolumeAttachment{}, "spec.nodeName", func(object client.Object) string {
			return object.(*storagev1.VolumeAttachment).Spec.NodeName
		}},
		{&v1.NodeClaim{}, "status.providerID", func(object client.Object) string { return object.(*v1.NodeClaim).Status.ProviderID }},
		{&v1.NodeClaim{}, class + "group", func(object client.Object) string { return claimClass(object).Group }},
		{&v1.NodeClaim{}, class + "kind", func(object client.Object) string { return claimClass(object).Kind }},
		{&v1.NodeClaim{}, class + "name", func(object client.Object) string { return claimClass(object).Name }},
		{&v1.NodePool{}, pool + "group", func(object client.Object) string { return poolClass(object).Group }},
		{&v1.NodePool{}, pool + "kind", func(object client.Object) string { return poolClass(object).Kind }},
		{&v1.NodePool{}, pool + "name", func(object client.Object) string { return poolClass(object).Name }},
	}
	var failed error
	for _, one := range fields {
		value := func(object client.Object) []string { return []string{one.value(object)} }
		failed = errors.Join(failed, manager.GetFieldIndexer().IndexField(ctx, one.kind, one.field, value))
	}
	return failed
}
