//! The pod-resources service of one node's kubelet, `v1`: which container holds which device.

use std::collections::BTreeMap;
use std::future::Ready;
use std::future::ready;
use std::io;
use std::task::Context;
use std::task::Poll;

use http_body_util::BodyExt;
use prost::Message;
use tonic::Status;
use tonic::server::Grpc;
use tonic_prost::ProstCodec;
use tower::Service;

use crate::serve::ServedSocket;
use crate::serve::serve_socket;
use crate::wire::BoxError;
use crate::wire::Request;
use crate::wire::Response;
use crate::wire::Wire;
use crate::wire::wire;
use crate::world::World;
use crate::world::machines::Assignment;
use crate::world::machines::Machine;

/// Where the socket lies below a node's root.
const SOCKET: &str = "var/lib/kubelet/pod-resources/kubelet.sock";

/// The NUMA node that all simulated devices are on.
const NUMA_NODE: i64 = 0;

/// The pod-resources service of one node, over what its machine knows.
pub fn pod_resources(world: World, node: &str) -> Wire {
    let node = node.to_owned();
    wire(move |request| {
        let (world, node) = (world.clone(), node.clone());
        async move { respond(&world, &node, request).await }
    })
}

/// Serves the service where the agent of that node looks for it.
pub async fn serve_pod_resources(world: World, node: &str) -> io::Result<ServedSocket> {
    let root = world.read(|state| state.machines.get(node).map(|machine| machine.root.clone()));
    let root = root.ok_or(io::ErrorKind::NotFound)?;
    serve_socket(pod_resources(world, node), &root.join(SOCKET)).await
}

/// `v1.ListPodResourcesRequest` and `v1.AllocatableResourcesRequest`.
#[derive(Clone, PartialEq, Message)]
struct Empty {}

/// `v1.ListPodResourcesResponse`.
#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(message, repeated, tag = "1")]
    pods: Vec<Pod>,
}

/// `v1.AllocatableResourcesResponse`.
#[derive(Clone, PartialEq, Message)]
struct Allocatable {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Devices>,
    #[prost(int64, repeated, tag = "2")]
    cpu_ids: Vec<i64>,
}

/// `v1.PodResources`.
#[derive(Clone, PartialEq, Message)]
struct Pod {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(message, repeated, tag = "3")]
    containers: Vec<Container>,
}

/// `v1.ContainerResources`.
#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    devices: Vec<Devices>,
    #[prost(int64, repeated, tag = "3")]
    cpu_ids: Vec<i64>,
}

/// `v1.ContainerDevices`.
#[derive(Clone, PartialEq, Message)]
struct Devices {
    #[prost(string, tag = "1")]
    resource: String,
    #[prost(string, repeated, tag = "2")]
    ids: Vec<String>,
    #[prost(message, optional, tag = "3")]
    topology: Option<Topology>,
}

/// `v1.TopologyInfo`.
#[derive(Clone, PartialEq, Message)]
struct Topology {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<NumaNode>,
}

/// `v1.NUMANode`.
#[derive(Clone, PartialEq, Message)]
struct NumaNode {
    #[prost(int64, tag = "1")]
    id: i64,
}

async fn respond(world: &World, node: &str, request: Request) -> Result<Response, BoxError> {
    let machine = world.read(|state| state.machines.get(node).cloned());
    let machine = machine.filter(|machine| machine.alive).ok_or("the machine is gone")?;
    let path = request.uri().path().to_owned();
    let response = match path.as_str() {
        "/v1.PodResourcesLister/List" => unary(list(&machine.assignments), request).await,
        "/v1.PodResourcesLister/GetAllocatableResources" => {
            unary(allocatable(&machine), request).await
        }
        _ => Status::unimplemented(format!("the simulated kubelet does not know `{path}`"))
            .into_http(),
    };
    let (parts, body) = response.into_parts();
    let whole = body.collect().await?;
    Ok(Response::from_parts(parts, whole.map_err(|never| match never {}).boxed()))
}

async fn unary<Answer: Message + Default + 'static>(
    answer: Answer,
    request: Request,
) -> http::Response<tonic::body::Body> {
    let codec: ProstCodec<Answer, Empty> = ProstCodec::default();
    Grpc::new(codec).unary(Known(Some(answer)), request).await
}

/// Answers one call with what is known already.
struct Known<Answer>(Option<Answer>);

impl<Answer> Service<tonic::Request<Empty>> for Known<Answer> {
    type Response = tonic::Response<Answer>;
    type Error = Status;
    type Future = Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: tonic::Request<Empty>) -> Self::Future {
        let answer = self.0.take().map(tonic::Response::new);
        ready(answer.ok_or_else(|| Status::internal("one call was answered twice")))
    }
}

/// All pods that hold a device, in order.
fn list(assignments: &[Assignment]) -> List {
    let mut pods: BTreeMap<(&str, &str), BTreeMap<&str, Vec<Devices>>> = BTreeMap::new();
    for assignment in assignments {
        let containers = pods.entry((&assignment.namespace, &assignment.pod)).or_default();
        let devices = devices(&assignment.resource, assignment.devices.clone());
        containers.entry(&assignment.container).or_default().push(devices);
    }
    let pods = pods.into_iter().map(|((namespace, name), containers)| Pod {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        containers: containers.into_iter().map(container).collect(),
    });
    List { pods: pods.collect() }
}

fn container((name, devices): (&str, Vec<Devices>)) -> Container {
    Container { name: name.to_owned(), devices, cpu_ids: Vec::new() }
}

fn allocatable(machine: &Machine) -> Allocatable {
    let devices = machine.gpus.iter().map(|gpu| devices(&gpu.resource, gpu.device_ids()));
    Allocatable { devices: devices.collect(), cpu_ids: Vec::new() }
}

fn devices(resource: &str, ids: Vec<String>) -> Devices {
    let topology = Some(Topology { nodes: vec![NumaNode { id: NUMA_NODE }] });
    Devices { resource: resource.to_owned(), ids, topology }
}
