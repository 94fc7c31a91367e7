//! The floor: the bare loop that does only the guarded fencing patch, on nodes of its own.

use std::ops::Range;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use lifeboat::adapters::cluster::Cluster;
use lifeboat::adapters::cluster::ClusterError;
use lifeboat::adapters::cluster::Slots;
use lifeboat::adapters::cluster::nodes;
use lifeboat::clock::Clock;
use lifeboat_domain::signal::Action;
use lifeboat_domain::signal::Kind;
use tokio::time::Instant;

use crate::bench::figures::Floor;
use crate::bench::figures::Quantiles;
use crate::bench::fleet::Fleet;
use crate::bench::witness::Witness;

/// How many requests at a time are tried: the best of them is the floor.
const TRIED: [usize; 3] = [16, 32, 64];
/// How often a patch is tried.
const TRIES: usize = 5;

/// Fences the fleet at each concurrency, and takes the fence back after each.
pub(super) async fn measure(
    client: &kube::Client,
    fleet: &Fleet,
    witness: &Witness,
) -> anyhow::Result<Vec<Floor>> {
    let mut floors = Vec::new();
    for at_a_time in TRIED {
        let patches = Patches { at_a_time, pauses: None };
        floors.push(pass((client, &Clock::system()), (fleet, witness), patches).await?);
        take_back(client, (fleet, witness)).await?;
    }
    Ok(floors)
}

/// Fences one node after another, with the pauses that notices have between them: a machine that
/// rests in between answers later than one that is kept busy.
pub(super) async fn one_by_one(
    client: &kube::Client,
    (fleet, witness): (&Fleet, &Witness),
    pauses: Range<Duration>,
) -> anyhow::Result<Vec<Floor>> {
    let patches = Patches { at_a_time: 1, pauses: Some(pauses) };
    let floor = pass((client, &Clock::system()), (fleet, witness), patches).await?;
    take_back(client, (fleet, witness)).await?;
    Ok(vec![floor])
}

/// How the bare loop sends its patches.
#[derive(Clone, Debug)]
pub(super) struct Patches {
    /// So many at a time.
    pub(super) at_a_time: usize,
    /// After a pause within this range.
    pub(super) pauses: Option<Range<Duration>>,
}

/// Fences the fleet once.
pub(super) async fn pass(
    (client, clock): (&kube::Client, &Clock),
    (fleet, witness): (&Fleet, &Witness),
    Patches { at_a_time, pauses }: Patches,
) -> anyhow::Result<Floor> {
    let cluster = Cluster::first_aid(client.clone(), &Slots::new(at_a_time, 0));
    let kind = Kind::SpotInterruption { action: Action::Terminate };
    let rows: Option<Vec<_>> =
        (0..fleet.nodes).map(|number| witness.row(&fleet.node(number))).collect();
    let rows = rows.context("a node of the floor is not there")?;
    let began = Instant::now();
    let patches = rows.iter().map(|row| {
        let (cluster, pauses) = (&cluster, &pauses);
        async move {
            if let Some(pauses) = pauses {
                tokio::time::sleep(drawn(pauses)).await;
            }
            let asked = Instant::now();
            again(|| nodes::fence(cluster, row, kind.label(), clock.now())).await?;
            Ok::<Duration, ClusterError>(asked.elapsed())
        }
    });
    let mut patches = futures::stream::iter(patches).buffer_unordered(at_a_time);
    let mut times = Vec::with_capacity(fleet.nodes);
    while let Some(took) = patches.next().await {
        times.push(took.context("a patch of the floor failed")?);
    }
    let whole = began.elapsed();
    #[expect(clippy::cast_precision_loss, reason = "a count of nodes")]
    let nodes_per_second = fleet.nodes as f64 / whole.as_secs_f64();
    Ok(Floor { at_a_time, patch: Quantiles::of(times, Some(whole)), nodes_per_second })
}

/// A pause of no fixed length, so that nobody's clock ticks with ours.
pub(super) fn drawn(range: &Range<Duration>) -> Duration {
    range.start + range.end.saturating_sub(range.start).mul_f64(fastrand::f64())
}

/// Asks once more whoever was late, as the controller does.
async fn again<T>(
    mut ask: impl AsyncFnMut() -> Result<T, ClusterError>,
) -> Result<T, ClusterError> {
    let mut answer = ask().await;
    for _ in 1..TRIES {
        if !matches!(answer, Err(ClusterError::Late { .. })) {
            break;
        }
        answer = ask().await;
    }
    answer
}

/// The controller manager reacts to a cordon with a taint of its own, so it is waited for.
async fn take_back(
    client: &kube::Client,
    (fleet, witness): (&Fleet, &Witness),
) -> anyhow::Result<()> {
    tokio::time::sleep(Duration::from_millis(500)).await;
    let cluster = Cluster::first_aid(client.clone(), &Slots::new(32, 0));
    let rows = (0..fleet.nodes).filter_map(|number| witness.row(&fleet.node(number)));
    let taken = rows.map(|row| {
        let cluster = &cluster;
        async move { again(|| nodes::take_back(cluster, &row)).await }
    });
    let mut taken = std::pin::pin!(futures::stream::iter(taken).buffer_unordered(32));
    while let Some(taken) = taken.next().await {
        taken.context("a fence of the floor was not taken back")?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}
