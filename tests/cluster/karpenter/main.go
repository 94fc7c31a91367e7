// The released Karpenter over a cloud that tests steer. Everything listens on loopback.
package main

import "lifeboat.dev/tests/cluster/karpenter/core"

func main() { core.Run() }
