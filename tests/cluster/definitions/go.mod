module lifeboat.dev/tests/cluster/definitions

go 1.26.0

require (
	github.com/aws/karpenter-provider-aws v1.14.1
	sigs.k8s.io/jobset v0.12.0
)
