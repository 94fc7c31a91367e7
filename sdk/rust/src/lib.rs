//! One call per training step: state that leaves a Spot node in time.
//!
//! ```no_run
//! use lifeboat_sdk::{Boat, Tensor};
//!
//! # fn train(weights: &mut [f32]) {}
//! # fn main() -> Result<(), lifeboat_sdk::Error> {
//! let boat = Boat::connect()?;
//! let weights = Tensor::new(vec![0.0_f32; 1 << 20]);
//! boat.register("weights", &weights)?;
//! let start = boat.restore()?.unwrap_or(0);
//! for step in start..100_000 {
//!     train(&mut weights.lock());
//!     boat.step(step + 1)?;
//! }
//! boat.finish()
//! # }
//! ```
//!
//! Without an agent (`LIFEBOAT_SOCKET` is not set) the same program runs anywhere; with
//! `LIFEBOAT_DIR` it saves to that folder on SIGTERM and goes on from there.
//!
//! [`Boat::step`] may not return: when the node is taken, the program's state is saved and the
//! program ends in there, with exit code 143 on SIGTERM. That is the point: it cannot run on to
//! its end on a node from which nothing is kept.

#[cfg(target_endian = "big")]
compile_error!("checkpoints are little-endian, and are not converted");

mod boat;
mod boottime;
mod error;
mod event;
mod hand_over;
mod line;
mod local;
mod restore;
mod ring;
mod settings;
mod shared;
mod state;
mod terminate;

pub use boat::Boat;
pub use error::Error;
pub use event::Event;
pub use event::Notice;
pub use event::Observer;
pub use lifeboat_checkpoint::region::Dtype;
pub use lifeboat_checkpoint::tree::Tree;
pub use lifeboat_protocol::frame::Cause;
pub use lifeboat_protocol::frame::Failure;
pub use settings::Pulse;
pub use settings::Rank;
pub use settings::Required;
pub use settings::Settings;
pub use settings::Signals;
pub use state::Borrowed;
pub use state::Busy;
pub use state::Collection;
pub use state::Element;
pub use state::Memory;
pub use state::Part;
pub use state::Piece;
pub use state::Pieces;
pub use state::Structure;
pub use state::Tensor;
pub use state::Value;
