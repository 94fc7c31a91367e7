//! Speaks for a workload that saves itself when it is called.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use lifeboat_checkpoint::region::Layout;
use lifeboat_checkpoint::tree::Tree;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::deadline::earlier;
use lifeboat_domain::ids::PodUid;
use lifeboat_protocol::frame::Cause;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::Progress;
use lifeboat_protocol::frame::SaveAt;
use lifeboat_protocol::frame::SaveBegin;
use lifeboat_protocol::frame::SaveEnd;
use serde_json::json;
use tracing::info;
use tracing::warn;

use crate::adapters::pod_http::Address;
use crate::agent::workloads::stand_in::Coming;
use crate::agent::workloads::stand_in::Seat;
use crate::agent::workloads::stand_in::Told;
use crate::clock::Clock;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// What is kept of the time left to say in the bucket that it is saved.
const COMMIT: Duration = Duration::from_secs(3);

/// How long a call may take where there is no hurry.
const NO_HURRY: Duration = Duration::from_mins(10);

/// Who calls one pod.
#[derive(Debug)]
pub(in crate::agent::workloads) struct Caller {
    /// The pod.
    pub(in crate::agent::workloads) pod: PodUid,
    /// Where it is called.
    pub(in crate::agent::workloads) address: Address,
    /// The time.
    pub(in crate::agent::workloads) clock: Clock,
}

impl Caller {
    /// Speaks until the line is cut.
    pub(in crate::agent::workloads) async fn serve(self, mut seat: Seat) {
        seat.greet(Coming::First).await;
        // It runs, and nobody asks it where: there is something to save from the beginning.
        seat.say(FromWorkload::Progress(Progress::default())).await;
        let mut cause = Cause::Unknown;
        let mut next = None;
        loop {
            let told = match next.take() {
                Some(told) => Some(told),
                None => seat.hear().await,
            };
            match told {
                None => break,
                Some(Told::Asked(why)) => cause = why,
                Some(Told::Save(at)) => next = self.save(&mut seat, (&at, cause)).await,
                Some(_) => (),
            }
        }
        seat.leave().await;
    }

    /// Calls, and says that it is saved once the workload does. What is told meanwhile that ends
    /// the save is given back.
    async fn save(&self, seat: &mut Seat, (at, cause): (&SaveAt, Cause)) -> Option<Told> {
        let deadline = at.deadline.and_then(|by| Timestamp::from_millisecond(by.unix_ms).ok());
        let by = match deadline {
            Some(deadline) => Deadline::new(earlier(deadline, COMMIT)),
            None => Deadline::after(self.clock.now(), NO_HURRY),
        };
        let question = self.question(cause, deadline);
        let mut call = std::pin::pin!(self.address.call(&question, by, &self.clock));
        let answer = loop {
            tokio::select! {
                biased;
                told = seat.hear() => match told {
                    None | Some(Told::CalledOff) => return None,
                    Some(anew @ (Told::Asked(_) | Told::Save(_))) => return Some(anew),
                    Some(_) => (),
                },
                answer = &mut call => break answer,
            }
        };
        let save = at.save;
        match answer {
            Ok(answer) => {
                info!(pod = %self.pod, bytes = answer.len(), "workload saved itself");
                let layout = layout(&answer);
                seat.say(FromWorkload::SaveBegin(SaveBegin { save, step: 0, layout })).await;
                seat.say(FromWorkload::SaveEnd(SaveEnd { save, bytes: 0 })).await;
            }
            Err(error) => {
                metrics::error("pod_http", error.label());
                let reason = Chain(&error).to_string();
                warn!(pod = %self.pod, error = reason, "workload did not save itself");
                seat.refuse(save, reason).await;
            }
        }
        None
    }

    fn question(&self, cause: Cause, deadline: Option<Timestamp>) -> Bytes {
        let left = deadline.map(|deadline| Deadline::new(deadline).left(self.clock.now()));
        let question = json!({
            "cause": cause,
            "deadline": deadline.map(|deadline| deadline.to_string()),
            "secondsLeft": left.map(|left| left.as_secs()),
        });
        Bytes::from(question.to_string())
    }
}

/// Nothing to store but what the workload says of its state, so that people find it.
fn layout(answer: &Bytes) -> Layout {
    let said = String::from_utf8_lossy(answer).into_owned();
    Layout { regions: Vec::new(), tree: Tree::map([("answer", Tree::Str(said))]) }
}
