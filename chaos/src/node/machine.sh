#!/usr/bin/env bash
# The first process of a node's namespaces: what it makes is seen by nobody else, and ends with it.
# Only control groups are the machine's: those of this node lie in one folder of its name.
#
# Told by its environment: NODE, STATE (its folder), BINARIES, CGROUP, ADDRESS, and IMAGES. In STATE lie the
# configurations of containerd and kubelet.
set -eu

mount --make-rprivate /
mount -t proc proc /proc
hostname "$NODE"
for folder in /run /var/lib /var/log; do
    mount -t tmpfs tmpfs "$folder"
done
for folder in kubelet pods; do
    mkdir -p "$STATE/$folder"
done
mkdir -p /var/lib/kubelet /var/lib/lifeboat /var/log/pods /var/log/containers /opt/cni
mount --bind "$STATE/kubelet" /var/lib/kubelet
mount --bind "$STATE/pods" /var/log/pods

# What kubelet would set for the whole machine, it sets in copies.
mkdir -p "$STATE/sysctl"
while read -r name value; do
    [ -e "/proc/sys/$name" ] || continue
    echo "$value" >"$STATE/sysctl/${name//\//.}"
    mount --bind "$STATE/sysctl/${name//\//.}" "/proc/sys/$name"
done <<EOF
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
EOF

if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    for controller in cpuset cpu io memory pids hugetlb; do
        echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || true
    done
    mkdir -p "/sys/fs/cgroup/$CGROUP"
else
    for hierarchy in /sys/fs/cgroup/*/; do
        [ -e "$hierarchy/cgroup.procs" ] || continue
        mkdir -p "$hierarchy/$CGROUP"
        for file in cpuset.cpus cpuset.mems; do
            [ ! -e "$hierarchy/$file" ] || cat "$hierarchy/$file" >"$hierarchy/$CGROUP/$file"
        done
    done
fi

# Its own address, for which kubelet takes none of loopback, and those that are the same everywhere:
# the API server's and the instance metadata's.
ip link set lo up
ip link add br0 type bridge
ip addr add "$ADDRESS/24" dev br0
ip link set br0 up
ip route add default via "${ADDRESS%.*}.254" dev br0
for everywhere in 10.0.0.1 169.254.169.254; do
    ip addr add "$everywhere/32" dev lo
done
printf '127.0.0.1 localhost\n%s %s\n' "$ADDRESS" "$NODE" >"$STATE/hosts"
mount --bind "$STATE/hosts" /etc/hosts
mount --make-rshared /
export PATH="$BINARIES:$PATH" HOME=/run

# The lines to the outside are laid while this goes on; kubelet tries until they are.
: >"$STATE/network"

ask() { ctr --address /run/containerd/containerd.sock --namespace k8s.io "$@"; }
containerd --config "$STATE/containerd.toml" >"$STATE/containerd.log" 2>&1 &
for _ in $(seq 400); do
    ! ask version >/dev/null 2>&1 || break
    sleep 0.05
done
for image in $IMAGES; do
    ask images import "$image" >>"$STATE/import.log" 2>&1
done
kubelet --config "$STATE/kubelet.yaml" --kubeconfig "$STATE/kubeconfig" --hostname-override "$NODE" \
    --node-ip "$ADDRESS" --node-labels "$LABELS" --cert-dir "$STATE/pki" >"$STATE/kubelet.log" 2>&1 &

# The shell takes in whoever is left without a parent.
while :; do
    sleep 3600 &
    wait -n || true
done
