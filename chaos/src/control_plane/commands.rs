//! The command line of each program.

use std::ffi::OsString;
use std::path::Path;

use super::Audit;
use super::Durability;
use super::FAKE_NODE;
use super::Nodes;
use super::Part;
use super::Settings;
use super::child::Program;
use super::layout::Layout;

/// Requests in a second that the controllers may send: enough not to be what is measured.
const RATE: &[&str] = &["--kube-api-qps=300", "--kube-api-burst=500"];

/// Pods' addresses that kwok gives out.
const PODS: &str = "10.128.0.0/9";

/// The program of `part`, with all that it is told.
pub(super) fn command(settings: &Settings, layout: &Layout, part: Part) -> Program {
    let arguments = match part {
        Part::Etcd => etcd(settings, layout),
        Part::ApiServer => api_server(settings, layout),
        Part::ControllerManager => controller_manager(settings, layout),
        Part::Scheduler => scheduler(layout),
        Part::Kwok => kwok(settings, layout),
        Part::Karpenter => Vec::new(),
    };
    let environment = match part {
        Part::Karpenter => karpenter(settings, layout),
        Part::Etcd | Part::ApiServer | Part::ControllerManager | Part::Scheduler | Part::Kwok => {
            Vec::new()
        }
    };
    let path = settings.binaries.join(part.name());
    let arguments = arguments.into_iter().map(OsString::from).collect();
    Program { path, arguments, environment, folder: layout.state().to_owned() }
}

fn etcd(settings: &Settings, layout: &Layout) -> Vec<String> {
    let clients = layout.etcd();
    let peers = format!("http://127.0.0.1:{}", layout.ports.etcd_peers);
    let mut flags = vec![
        "--name=default".to_owned(),
        flag("data-dir", &layout.etcd_data()),
        "--log-level=warn".to_owned(),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        "--quota-backend-bytes=4294967296".to_owned(),
    ];
    if settings.durability == Durability::NoFsync {
        flags.push("--unsafe-no-fsync".to_owned());
    }
    flags
}

fn api_server(settings: &Settings, layout: &Layout) -> Vec<String> {
    let pki = layout.pki();
    let mut flags = vec![
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", layout.ports.api_server),
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--etcd-servers={}", layout.etcd()),
        flag("tls-cert-file", &pki.join("api.crt")),
        flag("tls-private-key-file", &pki.join("api.key")),
        flag("client-ca-file", &pki.join("ca.crt")),
        flag("token-auth-file", &layout.tokens()),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--service-account-issuer=https://cluster.lifeboat.dev".to_owned(),
        flag("service-account-key-file", &pki.join("sa.pub")),
        flag("service-account-signing-key-file", &pki.join("sa.key")),
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--profiling=false".to_owned(),
    ];
    if settings.audit != Audit::Off {
        flags.push(flag("audit-policy-file", &layout.audit_policy()));
        flags.push(flag("audit-log-path", &layout.audit_log()));
        // Whoever read an answer finds it in the log.
        flags.push("--audit-log-mode=blocking".to_owned());
    }
    if let Some(seats) = settings.seats {
        // The server adds the two up, and shares the sum out among its priority levels.
        flags.push(format!("--max-requests-inflight={seats}"));
        flags.push("--max-mutating-requests-inflight=0".to_owned());
    }
    flags
}

fn controller_manager(settings: &Settings, layout: &Layout) -> Vec<String> {
    let own = layout.kubeconfig_of("controller-manager");
    let pki = layout.pki();
    let grace = match settings.nodes {
        Nodes::Lively => "40s",
        Nodes::Quiet => "2h",
    };
    let mut flags = vec![
        flag("kubeconfig", &own),
        flag("authentication-kubeconfig", &own),
        flag("authorization-kubeconfig", &own),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", layout.ports.controller_manager),
        flag("cert-dir", &pki.join("controller-manager")),
        flag("service-account-private-key-file", &pki.join("sa.key")),
        flag("root-ca-file", &pki.join("ca.crt")),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        format!("--node-monitor-grace-period={grace}"),
    ];
    flags.extend(RATE.iter().map(|flag| (*flag).to_owned()));
    flags
}

fn scheduler(layout: &Layout) -> Vec<String> {
    let own = layout.kubeconfig_of("scheduler");
    let mut flags = vec![
        flag("kubeconfig", &own),
        flag("authentication-kubeconfig", &own),
        flag("authorization-kubeconfig", &own),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", layout.ports.scheduler),
        flag("cert-dir", &layout.pki().join("scheduler")),
        "--leader-elect=false".to_owned(),
    ];
    flags.extend(RATE.iter().map(|flag| (*flag).to_owned()));
    flags
}

fn kwok(settings: &Settings, layout: &Layout) -> Vec<String> {
    let (annotation, value) = FAKE_NODE;
    let lease = match settings.nodes {
        Nodes::Lively => 40,
        Nodes::Quiet => 2_400,
    };
    vec![
        flag("kubeconfig", &layout.kubeconfig_of("kwok")),
        flag("config", &layout.stages()),
        "--manage-all-nodes=false".to_owned(),
        format!("--manage-nodes-with-annotation-selector={annotation}={value}"),
        format!("--node-lease-duration-seconds={lease}"),
        format!("--cidr={PODS}"),
        "--node-ip=127.0.0.1".to_owned(),
        format!("--server-address=127.0.0.1:{}", layout.ports.kwok),
    ]
}

fn karpenter(settings: &Settings, layout: &Layout) -> Vec<(&'static str, OsString)> {
    let beside = || settings.binaries.join("instance-types.json");
    let chosen = settings.karpenter.as_ref();
    let types = chosen.and_then(|chosen| chosen.instance_types.clone()).unwrap_or_else(beside);
    let idle = chosen.map_or(1_000, |chosen| chosen.batch_idle.as_millis());
    let ports = &layout.ports;
    let mut environment = vec![
        ("KUBECONFIG", layout.kubeconfig_of("karpenter").into()),
        ("METRICS_PORT", ports.karpenter_metrics.to_string().into()),
        ("HEALTH_PROBE_PORT", ports.karpenter_health.to_string().into()),
        ("DISABLE_LEADER_ELECTION", "true".into()),
        ("KARPENTER_SERVICE", "karpenter".into()),
        ("SYSTEM_NAMESPACE", "kube-system".into()),
        ("FEATURE_GATES", "NodeOverlay=true".into()),
        ("BATCH_IDLE_DURATION", format!("{idle}ms").into()),
        ("LOG_LEVEL", "info".into()),
        ("INSTANCE_TYPES", types.into()),
        ("CLOUD", layout.cloud().into()),
    ];
    let more = chosen.iter().flat_map(|chosen| &chosen.environment);
    environment.extend(more.map(|(name, value)| (*name, value.into())));
    environment
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}
