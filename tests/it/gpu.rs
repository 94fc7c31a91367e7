//! The real NVML, where this machine has one: what we read is there, and a process comes and goes.
#![allow(clippy::print_stdout, reason = "what is skipped is skipped aloud")]

use std::io::BufRead;
use std::io::BufReader;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use lifeboat::adapters::nvml::Gpu;
use lifeboat::adapters::nvml::Nvml;
use lifeboat::offload::Offload;

/// Takes a context on the first GPU by the driver's own library and holds it until its input ends.
const HOLD_A_GPU: &str = r#"
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def check(code, what):
    if code != 0:
        print(f"{what}: {code}", flush=True)
        sys.exit(1)
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
check(cuda.cuInit(0), "cuInit")
check(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
check(cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(64 << 20)), "cuMemAlloc")
print("ready", flush=True)
sys.stdin.read()
"#;

#[tokio::test]
async fn a_process_on_a_real_gpu_is_seen_and_its_end_too() {
    let nvml = match Nvml::load(None, Offload::Threads).await {
        Ok(nvml) => nvml,
        Err(error) => return println!("SKIPPED: no real GPU here: {error}"),
    };
    println!("driver {:?}", nvml.driver().await);
    let before = nvml.look().await.unwrap();
    assert!(!before.is_empty(), "a driver without a GPU");
    for gpu in &before {
        println!("{gpu:?}");
        assert!(gpu.uuid.starts_with("GPU-"), "{}", gpu.uuid);
        assert!(gpu.mig.iter().all(|part| part.uuid.starts_with("MIG-")), "{gpu:?}");
    }
    let Some(mut holder) = hold_a_gpu() else {
        return println!("SKIPPED: no process could be put on the GPU, lists were read");
    };

    let seen = until(&nvml, |now| count(now) > count(&before)).await;
    println!("pid {} seen as {:?}", holder.id(), seen.as_deref().map(pids));
    drop(holder.stdin.take());
    holder.wait().unwrap();
    if seen.is_none() && !in_the_hosts_namespace() {
        return println!("SKIPPED: the driver lists no process of this namespace of pids");
    }
    assert!(seen.is_some(), "the process never came on the list");
    let released = until(&nvml, |now| count(now) <= count(&before)).await;
    assert!(released.is_some(), "the process never left the list");
}

/// Whether pids here are the host's. Elsewhere a driver may list nothing, which is why the agent runs
/// with `hostPID`. Source: Linux, `include/linux/proc_ns.h`, `PROC_PID_INIT_INO`.
fn in_the_hosts_namespace() -> bool {
    let own = std::fs::read_link("/proc/self/ns/pid");
    own.is_ok_and(|own| own.as_os_str() == "pid:[4026531836]")
}

/// Asks until it is so, for ten seconds at most.
async fn until(nvml: &Nvml, so: impl Fn(&[Gpu]) -> bool) -> Option<Vec<Gpu>> {
    for _ in 0..100 {
        let now = nvml.look().await.unwrap();
        if so(&now) {
            return Some(now);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    None
}

fn hold_a_gpu() -> Option<Child> {
    let mut child = Command::new("python3")
        .args(["-c", HOLD_A_GPU])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
    if line.trim() == "ready" {
        return Some(child);
    }
    child.wait().ok();
    None
}

fn count(gpus: &[Gpu]) -> usize {
    pids(gpus).len()
}

fn pids(gpus: &[Gpu]) -> Vec<u32> {
    gpus.iter().flat_map(Gpu::processes).map(|process| process.pid).collect()
}
