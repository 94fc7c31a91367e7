//! One interruption, told in the order in which it happened.

use jiff::Timestamp;
use kube::ResourceExt;

use super::head;
use super::noticed;
use super::progress;
use crate::commands::table::Table;
use crate::commands::table::since;
use crate::crd::node_interruption::Claim;
use crate::crd::node_interruption::DrainBy;
use crate::crd::node_interruption::NodeInterruption;
use crate::crd::node_interruption::SaveState;
use crate::crd::node_interruption::Signal;
use crate::crd::node_interruption::Workload;

/// Something that happened, or that is expected to.
type Moment = (Timestamp, String);

/// The whole story of one interruption, as a person reads it.
pub(super) fn tell(record: &NodeInterruption, now: Timestamp) -> String {
    let notice = noticed(record);
    let mut moments = moments(record);
    // What came in one second stays in the order of the parts: heard, fenced, held, saved, ended.
    moments.sort_by_key(|(at, _)| *at);
    let mut table = Table::new("", &["", "TIME", "WHAT"]);
    for (at, what) in moments {
        let mark = if at > now { "~ " } else { "" };
        table.add([
            format!("{mark}{}", since(notice, Some(at))),
            at.strftime("%H:%M:%S").to_string(),
            what,
        ]);
    }
    let workloads = record.status.iter().flat_map(|status| status.workloads.values());
    let failed = workloads.filter_map(|workload| {
        let error = workload.save.as_ref()?.error.as_ref()?;
        Some(format!("{} was not saved: {error}\n", name(workload)))
    });
    format!("{}\n{}{}", head(record, now), table.render(), failed.collect::<String>())
}

fn moments(record: &NodeInterruption) -> Vec<Moment> {
    let status = record.status.clone().unwrap_or_default();
    let mut moments: Vec<Moment> = record.spec.signals.values().flat_map(signal).collect();
    if let Some(fence) = &status.fence {
        let before = if fence.cordoned_before { ", which was cordoned already" } else { "" };
        moments.push((fence.at, format!("node `{}` is fenced{before}", record.spec.node)));
    }
    for (uid, at) in &status.holds {
        let pod = status.workloads.get(uid).map_or_else(|| format!("pod {uid}"), name);
        moments.push((*at, format!("{pod} is held")));
    }
    let replacement = status.replacement.unwrap_or_default();
    moments.extend(replacement.claims.iter().flat_map(claim));
    moments.extend(status.workloads.values().flat_map(workload));
    if let Some(deadline) = status.deadline {
        moments.push((deadline, "the instance may be gone".to_owned()));
    }
    if let Some(closed) = status.closed_at {
        let phase = status.phase.as_deref().unwrap_or("unknown");
        let slack = status.slack.map_or_else(String::new, |slack| format!(", {slack} to spare"));
        moments.push((closed, format!("closed: {phase}{slack}")));
    }
    moments
}

fn signal(signal: &Signal) -> Vec<Moment> {
    let Signal { kind, source, heard_by, .. } = signal;
    let more = [&signal.action, &signal.state, &signal.detail];
    let said: Vec<&str> = std::iter::once(kind.as_str())
        .chain(more.into_iter().flatten().map(String::as_str))
        .collect();
    vec![
        (signal.time, format!("EC2 says: {}", said.join(", "))),
        (signal.heard_at, format!("heard by `{heard_by}` ({source})")),
    ]
}

fn claim(claim: &Claim) -> Vec<Moment> {
    let Claim { name, asked_at, without, ready_at, gone_at } = claim;
    let without = without.as_ref().map_or_else(String::new, |what| format!(", without {what}"));
    let mut moments = vec![(*asked_at, format!("replacement `{name}` is asked for{without}"))];
    moments.extend(ready_at.map(|at| (at, format!("replacement `{name}` has a node"))));
    moments.extend(gone_at.map(|at| (at, format!("replacement `{name}` is gone"))));
    moments
}

fn workload(workload: &Workload) -> Vec<Moment> {
    let pod = name(workload);
    let mut moments: Vec<Moment> = Vec::new();
    if let Some(save) = &workload.save {
        moments.extend(save.started_at.map(|at| (at, format!("{pod} is told to save"))));
        let step = save.step.map_or_else(String::new, |step| format!(", step {step}"));
        let size = progress(save).map_or_else(String::new, |size| format!(", {size}"));
        moments.extend(save.durable_at.map(|at| (at, format!("{pod} is durable{step}{size}"))));
        let under_way = matches!(save.state, SaveState::Asked | SaveState::Saving);
        let expected = save.expected.as_ref().filter(|_| under_way);
        moments.extend(expected.map(|expected| {
            let margin = expected.margin.as_deref().unwrap_or("no deadline");
            (expected.at, format!("{pod} is expected to be durable ({margin})"))
        }));
    }
    if let Some(drain) = &workload.drain {
        let how = match drain.by {
            DrainBy::Evict => "evicted",
            DrainBy::Delete => "deleted",
            DrainBy::Unknown => "ended",
        };
        let refused = match drain.refusals {
            0 => String::new(),
            count => format!(", after {count} refusals by its budget"),
        };
        let why = format!("{} with {} s of grace", drain.reason, drain.grace);
        moments.push((drain.decided, format!("{pod} is to be {how}: {why}{refused}")));
        moments.extend(drain.gone_at.map(|at| (at, format!("{pod} is gone"))));
    }
    if let Some(release) = &workload.release {
        let slice = &release.slice;
        moments.extend(release.first.map(|at| (at, format!("{pod}: `{slice}` is seen empty"))));
        moments.extend(release.released_at.map(|at| (at, format!("{pod}: `{slice}` is free"))));
    }
    moments
}

fn name(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.pod)
}

/// Whether a record is the one that is asked for: by its instance, or by its node.
pub(super) fn is_named(record: &NodeInterruption, name: &str) -> bool {
    record.name_any() == name || record.spec.node == name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::status::tests::record;

    #[test]
    fn what_happened_is_told_in_order_and_what_is_expected_is_marked() {
        let now = "2026-11-22T12:00:40Z".parse().unwrap();
        let expected = "\
INSTANCE  NODE   PHASE     HEARD     TIME       SAVED   BYTES
i-1       gpu-1  Draining  40 s ago  80 s left  1 of 3  512.0 MiB

          TIME      WHAT
T+0 s     12:00:00  EC2 says: interruption
T+1 s     12:00:01  heard by `c-0` (queue)
T+38 s    12:00:38  team/train-0 is durable, step 8412, 512.0 MiB
T+39 s    12:00:39  team/train-0 is to be evicted: Durable with 15 s of grace
~ T+70 s  12:01:10  team/train-1 is expected to be durable (50s)
~ T+120 s  12:02:00  the instance may be gone
~ T+190 s  12:03:10  team/train-2 is expected to be durable (will not fit)
";
        let told = tell(&record(), now);
        let squeezed = |text: &str| -> Vec<String> {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
        };
        assert_eq!(squeezed(&told), squeezed(expected), "\n{told}");
    }

    #[test]
    fn a_record_is_found_by_its_instance_or_its_node() {
        assert!(is_named(&record(), "i-1") && is_named(&record(), "gpu-1"));
        assert!(!is_named(&record(), "gpu-2"));
    }
}
