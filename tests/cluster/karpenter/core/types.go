package core

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	v1 "sigs.k8s.io/karpenter/pkg/apis/v1"
	"sigs.k8s.io/karpenter/pkg/cloudprovider"
	"sigs.k8s.io/karpenter/pkg/scheduling"
)

// Labels that the AWS provider gives its nodes, as far as NodePools of ours ask for them.
const (
	familyLabel = "karpenter.k8s.aws/instance-family"
	gpuLabel    = "karpenter.k8s.aws/instance-gpu-name"
	countLabel  = "karpenter.k8s.aws/instance-gpu-count"
)

// instanceType is an entry of the file of instance types. Prices are in dollars an hour, by
// capacity type.
type instanceType struct {
	Name      string
	Resources corev1.ResourceList
	GPU       string
	Zones     []string
	Prices    map[string]float64
}

func readInstanceTypes(path string) ([]*cloudprovider.InstanceType, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var entries []instanceType
	if err := json.Unmarshal(text, &entries); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	v1.WellKnownLabels.Insert(familyLabel, gpuLabel, countLabel)
	types := make([]*cloudprovider.InstanceType, 0, len(entries))
	for _, entry := range entries {
		types = append(types, entry.offered())
	}
	return types, nil
}

func (entry instanceType) offered() *cloudprovider.InstanceType {
	family, _, _ := strings.Cut(entry.Name, ".")
	capacityTypes := make([]string, 0, len(entry.Prices))
	offerings := cloudprovider.Offerings{}
	for capacityType, price := range entry.Prices {
		capacityTypes = append(capacityTypes, capacityType)
		for _, zone := range entry.Zones {
			offerings = append(offerings, &cloudprovider.Offering{
				Price:     price,
				Available: true,
				Requirements: scheduling.NewRequirements(
					in(v1.CapacityTypeLabelKey, capacityType),
					in(corev1.LabelTopologyZone, zone),
				),
			})
		}
	}
	requirements := scheduling.NewRequirements(
		in(corev1.LabelInstanceTypeStable, entry.Name),
		in(corev1.LabelArchStable, v1.ArchitectureAmd64),
		in(corev1.LabelOSStable, string(corev1.Linux)),
		in(corev1.LabelTopologyZone, entry.Zones...),
		in(v1.CapacityTypeLabelKey, capacityTypes...),
		in(familyLabel, family),
	)
	if gpus, has := entry.Resources["nvidia.com/gpu"]; has {
		requirements.Add(in(gpuLabel, entry.GPU), in(countLabel, gpus.String()))
	} else {
		requirements.Add(none(gpuLabel), none(countLabel))
	}
	return &cloudprovider.InstanceType{
		Name:         entry.Name,
		Requirements: requirements,
		Offerings:    offerings,
		Capacity:     entry.Resources,
		Overhead: &cloudprovider.InstanceTypeOverhead{
			KubeReserved: corev1.ResourceList{
				corev1.ResourceCPU:    resource.MustParse("100m"),
				corev1.ResourceMemory: resource.MustParse("256Mi"),
			},
		},
	}
}

func in(key string, values ...string) *scheduling.Requirement {
	return scheduling.NewRequirement(key, corev1.NodeSelectorOpIn, values...)
}

func none(key string) *scheduling.Requirement {
	return scheduling.NewRequirement(key, corev1.NodeSelectorOpDoesNotExist)
}
