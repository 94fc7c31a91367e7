//! The simulated pod-resources service, asked by the agent's own client over a Unix socket.

use std::time::Duration;

use http::Request;
use jiff::Timestamp;
use lifeboat::adapters::kubelet::Holding;
use lifeboat::adapters::kubelet::PodResourcesClient;
use lifeboat::clock::Clock;
use lifeboat_chaos::serve::Door;
use lifeboat_chaos::wire::call;
use lifeboat_chaos::wire::full;
use lifeboat_chaos::wire::kubelet::pod_resources;
use lifeboat_chaos::wire::kubelet::serve_pod_resources;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::machines::Assignment;
use lifeboat_chaos::world::machines::Gpu;
use lifeboat_chaos::world::machines::Machine;
use tempfile::TempDir;

fn assignment(pod: &str, device: &str) -> Assignment {
    Assignment {
        namespace: "ml".to_owned(),
        pod: pod.to_owned(),
        uid: format!("uid-{pod}"),
        container: "main".to_owned(),
        resource: "nvidia.com/gpu.shared".to_owned(),
        devices: vec![device.to_owned()],
    }
}

fn holding(pod: &str, device: &str) -> Holding {
    Holding {
        namespace: "ml".to_owned(),
        pod: pod.to_owned(),
        container: "main".to_owned(),
        resource: "nvidia.com/gpu.shared".to_owned(),
        device: device.to_owned(),
    }
}

fn world() -> (World, TempDir) {
    let clock = Clock::starting_at(Timestamp::from_second(1_800_000_000).unwrap(), 0);
    let world = World::new(clock, 1);
    let folder = tempfile::tempdir().unwrap();
    let deep = "a-folder-name-that-is-long-enough/to-make-the-path/longer-than-107-bytes";
    let machine = Machine {
        instance: "i-1".to_owned(),
        root: folder.path().join(deep),
        gpus: vec![Gpu {
            uuid: "GPU-1".to_owned(),
            resource: "nvidia.com/gpu.shared".to_owned(),
            replicas: 2,
        }],
        assignments: vec![assignment("train-1", "GPU-1::1"), assignment("train-0", "GPU-1::0")],
        processes: std::collections::BTreeMap::new(),
        alive: true,
    };
    world.update(|state| state.machines.insert("gpu-1", machine));
    (world, folder)
}

fn client(world: &World) -> PodResourcesClient {
    let root = world.read(|state| state.machines.get("gpu-1").unwrap().root.clone());
    PodResourcesClient::new(&root)
}

#[tokio::test(start_paused = true)]
async fn who_holds_what_is_told_as_it_is_now() {
    let (world, _folder) = world();
    let _served = serve_pod_resources(world.clone(), "gpu-1").await.unwrap();
    let client = client(&world);
    let both = [holding("train-0", "GPU-1::0"), holding("train-1", "GPU-1::1")];
    assert_eq!(client.list().await.unwrap(), both);
    world.update(|state| state.machines.get_mut("gpu-1").unwrap().assignments.pop());
    assert_eq!(client.list().await.unwrap(), both[1..]);
}

#[tokio::test(start_paused = true)]
async fn a_kubelet_that_is_away_comes_back_at_the_same_place() {
    let (world, _folder) = world();
    let client = client(&world);
    client.list().await.unwrap_err();
    let served = serve_pod_resources(world.clone(), "gpu-1").await.unwrap();
    client.list().await.unwrap();
    served.set(Door::Closed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.list().await.unwrap_err();
    served.set(Door::Silent);
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.list().await.unwrap_err();
    served.set(Door::Open);
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.list().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_gone_machine_answers_nothing() {
    let (world, _folder) = world();
    let wire = pod_resources(world.clone(), "gpu-1");
    world.update(|state| state.machines.get_mut("gpu-1").unwrap().alive = false);
    let request =
        Request::post("http://kubelet/v1.PodResourcesLister/List").body(full("")).unwrap();
    assert!(call(&wire, request).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_method_is_unimplemented() {
    let (world, _folder) = world();
    let wire = pod_resources(world, "gpu-1");
    let request = Request::post("http://kubelet/v1.PodResourcesLister/Get").body(full("")).unwrap();
    let response = call(&wire, request).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "12");
}
