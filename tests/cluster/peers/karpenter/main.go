// The interruption controller of Karpenter's AWS provider beside Karpenter's core, over the stand-in
// cloud. The queue is named by Karpenter's own INTERRUPTION_QUEUE, and where SQS is by
// AWS_ENDPOINT_URL_SQS.
package main

import (
	"context"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	awscache "github.com/aws/karpenter-provider-aws/pkg/cache"
	"github.com/aws/karpenter-provider-aws/pkg/controllers/interruption"
	"github.com/aws/karpenter-provider-aws/pkg/utils"
	"github.com/awslabs/operatorpkg/controller"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	v1 "sigs.k8s.io/karpenter/pkg/apis/v1"

	"lifeboat.dev/tests/cluster/karpenter/core"
)

func main() { core.Run(interruptions) }

func interruptions(ctx context.Context, beside core.Beside) []controller.Controller {
	index(ctx, beside)
	queues := sqs.New(sqs.Options{
		Region:       os.Getenv("AWS_REGION"),
		BaseEndpoint: aws.String(os.Getenv("AWS_ENDPOINT_URL_SQS")),
		Credentials:  credentials.NewStaticCredentialsProvider("bench", "bench", ""),
	})
	// Without a provider of its own the controller asks SQS for the queue by its name, as in
	// production. Reserved capacity is not looked at: no message here speaks of it.
	return []controller.Controller{interruption.NewController(
		beside.Manager.GetClient(), beside.Clock, beside.Cloud, beside.Recorder,
		nil, queues, awscache.NewUnavailableOfferings(), nil,
	)}
}

// index adds the fields by which the controller finds who an instance is.
func index(ctx context.Context, beside core.Beside) {
	indexer := beside.Manager.GetFieldIndexer()
	claim := func(object client.Object) []string { return instance(object.(*v1.NodeClaim).Status.ProviderID) }
	node := func(object client.Object) []string { return instance(object.(*corev1.Node).Spec.ProviderID) }
	for _, err := range []error{
		indexer.IndexField(ctx, &v1.NodeClaim{}, "status.instanceID", claim),
		indexer.IndexField(ctx, &corev1.Node{}, "spec.instanceID", node),
	} {
		if err != nil {
			panic(err)
		}
	}
}

func instance(provider string) []string {
	id, err := utils.ParseInstanceID(provider)
	if err != nil {
		return nil
	}
	return []string{id}
}
