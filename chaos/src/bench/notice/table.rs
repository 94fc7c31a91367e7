//! What became of the nodes with the same load, as one line of the table.

use serde::Serialize;

use crate::bench::notice::node::Load;
use crate::bench::notice::node::Seen;

/// The nodes with one load.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Cell {
    #[serde(flatten)]
    pub(super) load: Load,
    pub(super) nodes: Vec<Seen>,
}

/// What became of many states.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    fits: usize,
    durable_that_fits: usize,
    others: usize,
    durable_others: usize,
}

impl Sum {
    fn of(nodes: &[Seen]) -> Self {
        nodes.iter().fold(Self::default(), |mut sum, node| {
            let (all, durable) = (node.states.len(), node.durable());
            if node.fits {
                sum.fits += all;
                sum.durable_that_fits += durable;
            } else {
                sum.others += all;
                sum.durable_others += durable;
            }
            sum
        })
    }

    fn text(self) -> String {
        let part = |durable: usize, all: usize| {
            let share = share(durable, all)
                .map_or_else(String::new, |share| format!(" {:.0} %", 100.0 * share));
            format!("{durable}/{all}{share}")
        };
        format!(
            "{:>14} {:>12}",
            part(self.durable_that_fits, self.fits),
            part(self.durable_others, self.others)
        )
    }
}

impl Cell {
    /// The line of the table.
    pub(super) fn line(&self) -> String {
        let Load { trainers, state_mib, step, gbit } = self.load;
        let states = || self.nodes.iter().flat_map(|node| &node.states);
        let durable = spread(states().filter_map(|state| state.durable).collect());
        let spare = self.nodes.iter().flat_map(|node| {
            node.states.iter().filter_map(|state| Some(node.taken - state.durable?))
        });
        let spare = spare.min_by(f64::total_cmp).map_or_else(String::new, |it| format!("{it:.1}"));
        let resume = spread(self.nodes.iter().filter_map(|node| node.resume).collect());
        let most = self.nodes.first().map_or(0.0, |node| node.resume_most);
        format!(
            "{trainers:8} {state_mib:9} {step:6} {gbit:6} {:7} {} {durable:>13} {spare:>7} \
             {resume:>13} {most:6.1}",
            self.nodes.len(),
            Sum::of(&self.nodes).text(),
        )
    }
}

/// The heading above the lines.
pub(super) fn heading() -> String {
    format!(
        "{:>8} {:>9} {:>6} {:>6} {:>7} {:>14} {:>12} {:>13} {:>7} {:>13} {:>6}",
        "trainers",
        "MiB each",
        "step s",
        "Gbit/s",
        "notices",
        "durable, fits",
        "others",
        "p50, last s",
        "spare s",
        "resume s",
        "at most"
    )
}

/// All of them together, and how many went on as soon as they should.
pub(super) fn total(cells: &[Cell]) -> Vec<String> {
    let nodes: Vec<Seen> = cells.iter().flat_map(|cell| cell.nodes.clone()).collect();
    let resumed: Vec<&Seen> = nodes.iter().filter(|node| node.resume.is_some()).collect();
    let soon = |node: &&&Seen| node.resume.is_some_and(|resume| resume <= node.resume_most);
    let broken = nodes.iter().filter(|node| !node.is_whole()).count();
    vec![
        format!("{:40} {}", "together", Sum::of(&nodes).text()),
        format!(
            "{} of {} nodes went on within bytes/(0.9 rate) + 3 s; {broken} lost or mixed up something",
            resumed.iter().filter(soon).count(),
            resumed.len()
        ),
    ]
}

/// The part that this is of all; none of nothing.
pub(super) fn share(part: usize, all: usize) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "counts of states")]
    let share = part as f64 / all as f64;
    (all > 0).then_some(share)
}

/// The median and the most.
fn spread(mut all: Vec<f64>) -> String {
    all.sort_by(f64::total_cmp);
    match (all.get(all.len() / 2), all.last()) {
        (Some(median), Some(most)) => format!("{median:.1} {most:.1}"),
        _ => String::new(),
    }
}
