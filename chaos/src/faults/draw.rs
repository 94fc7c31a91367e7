//! Plans drawn from a seed.

use std::time::Duration;

use fastrand::Rng;

use crate::faults::Fault;
use crate::faults::FaultKind;
use crate::faults::Plan;
use crate::faults::WireName;

/// Most faults of a drawn plan.
const FAULTS_MAX: usize = 6;

/// The longest window of a drawn fault: longer ones are scripts, which say what may be lost.
const WINDOW_MAX: Duration = Duration::from_secs(20);

/// The longest that a drawn fault holds a request back.
const DELAY_MAX: Duration = Duration::from_secs(3);

/// The oldest that a drawn stale read may be.
const STALE_MAX: Duration = Duration::from_secs(5);

impl Plan {
    /// A plan of a few faults on these wires that begin within `length`; the same seed gives the
    /// same plan.
    pub fn draw(random: &mut Rng, wires: &[WireName], length: Duration) -> Self {
        let count = if wires.is_empty() { 0 } else { random.usize(0..=FAULTS_MAX) };
        Self { faults: (0..count).map(|_| fault(random, wires, length)).collect() }
    }
}

/// Any time from zero to this, in whole milliseconds.
pub(super) fn up_to(random: &mut Rng, most: Duration) -> Duration {
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(random.u64(0..=most))
}

fn fault(random: &mut Rng, wires: &[WireName], length: Duration) -> Fault {
    let wire = wires[random.usize(0..wires.len())];
    let kind = kind(random, wire);
    let from = up_to(random, length);
    let until = from + Duration::from_millis(1) + up_to(random, WINDOW_MAX);
    let chance = [100, 50, 20][random.usize(0..3)];
    Fault { from, until, chance, ..Fault::new(wire, kind) }
}

fn kind(random: &mut Rng, wire: WireName) -> FaultKind {
    let kinds = match wire {
        WireName::Kube => 10,
        WireName::Sqs | WireName::S3 | WireName::Imds | WireName::Kubelet => 8,
    };
    match random.u8(0..kinds) {
        0 => FaultKind::Away,
        1 => FaultKind::Delay(up_to(random, DELAY_MAX)),
        2 => FaultKind::Reorder(up_to(random, DELAY_MAX)),
        3 => FaultKind::Refuse([429, 500, 503][random.usize(0..3)]),
        4 => FaultKind::Hang,
        5 => FaultKind::LoseRequest,
        6 => FaultKind::LoseResponse,
        7 => FaultKind::Duplicate,
        8 => FaultKind::StaleRead(up_to(random, STALE_MAX)),
        _ => FaultKind::WatchGone,
    }
}
