//! What one rank may say next: the states of a session, moved by what is said and ordered.

/// Where a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Connected; it must say hello first.
    New,
    /// It said hello and does what it wants; all its state is its own.
    Running,
    /// It waits in `restore()`.
    Restoring,
    /// It was asked for its step.
    Asked {
        /// For which save.
        save: u64,
    },
    /// It said where it is.
    Ready {
        /// For which save.
        save: u64,
        /// Steps completed.
        step: u64,
        /// Whether it stands still there.
        still: Still,
    },
    /// It was told at which step it is saved.
    Due {
        /// Which save.
        save: u64,
    },
    /// It hands its state over.
    Handing {
        /// For which save.
        save: u64,
    },
    /// It has handed over all of it.
    Handed {
        /// For which save.
        save: u64,
    },
    /// It is parked, and its state is saved, or lost, or there was none.
    Parked,
    /// It said that the work is done.
    Finishing,
    /// The end of the work is stored.
    Finished,
}

/// Whether a rank stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Still {
    /// It does.
    Yes,
    /// It is in the middle of a step.
    No,
}

/// What is said by the workload, or ordered by the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// It says who it is.
    Hello,
    /// It wants the newest state.
    Restore,
    /// It takes part in its restore.
    Restored,
    /// It says where it is.
    Ready {
        /// For which save.
        save: u64,
        /// Steps completed.
        step: u64,
        /// Whether it stands still there.
        still: Still,
    },
    /// It begins to hand over.
    Begin {
        /// For which save.
        save: u64,
    },
    /// It hands a part over.
    Part {
        /// For which save.
        save: u64,
    },
    /// It has handed over all.
    End {
        /// For which save.
        save: u64,
    },
    /// It cannot be saved.
    Refuse {
        /// Which save.
        save: u64,
    },
    /// Its work is done.
    Finish,
    /// Order: say where you are.
    Ask {
        /// For which save.
        save: u64,
    },
    /// Order: be saved at this step.
    Tell {
        /// Which save.
        save: u64,
    },
    /// Order: stay where you are.
    Park,
    /// Order: go on.
    GoOn,
    /// Order: the end is stored.
    Done,
}

/// What becomes of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It is acted upon, and the session is here then.
    Go(State),
    /// It came too late or means nothing here; nothing happens.
    Ignore,
    /// No workload says this here: the line is cut.
    Cut,
}

impl State {
    /// What comes of an input.
    pub(super) fn on(self, input: Input) -> Next {
        match input {
            Input::Hello => match self {
                Self::New => Next::Go(Self::Running),
                _ => Next::Cut,
            },
            _ if self == Self::New => Next::Cut,
            Input::Restore | Input::Restored => self.on_restore(input),
            Input::Ready { save, step, still } => match self {
                Self::Asked { save: asked } if asked == save => {
                    Next::Go(Self::Ready { save, step, still })
                }
                _ => Next::Ignore,
            },
            Input::Begin { save }
            | Input::Part { save }
            | Input::End { save }
            | Input::Refuse { save } => self.on_hand_over(input, save),
            Input::Finish => match self {
                Self::Finished | Self::Finishing | Self::Restoring => Next::Ignore,
                _ => Next::Go(Self::Finishing),
            },
            Input::Ask { save } => match self {
                Self::Restoring | Self::Finishing | Self::Finished => Next::Ignore,
                _ => Next::Go(Self::Asked { save }),
            },
            Input::Tell { save } => match self {
                Self::Asked { save: asked } | Self::Ready { save: asked, .. } if asked == save => {
                    Next::Go(Self::Due { save })
                }
                _ => Next::Ignore,
            },
            Input::Park => match self {
                Self::Finishing | Self::Finished => Next::Ignore,
                _ => Next::Go(Self::Parked),
            },
            Input::GoOn => match self {
                Self::Finishing | Self::Finished => Next::Ignore,
                _ => Next::Go(Self::Running),
            },
            Input::Done => match self {
                Self::Finishing => Next::Go(Self::Finished),
                _ => Next::Ignore,
            },
        }
    }

    fn on_restore(self, input: Input) -> Next {
        match (self, input) {
            (Self::Running, Input::Restore) | (Self::Restoring, Input::Restored) => {
                Next::Go(Self::Restoring)
            }
            // A rank that was parked while it waited may ask again, and waits again.
            (Self::Parked, Input::Restore) => Next::Go(Self::Parked),
            _ => Next::Ignore,
        }
    }

    fn on_hand_over(self, input: Input, save: u64) -> Next {
        let (Self::Due { save: own } | Self::Handing { save: own }) = self else {
            // A rank that was asked may refuse at once.
            return match (self, input) {
                (
                    Self::Asked { save: own } | Self::Ready { save: own, .. },
                    Input::Refuse { .. },
                ) if own == save => Next::Go(Self::Running),
                (Self::Asked { save: own } | Self::Ready { save: own, .. }, _) if own == save => {
                    Next::Cut
                }
                _ => Next::Ignore,
            };
        };
        if own != save {
            return Next::Ignore;
        }
        match (self, input) {
            (Self::Due { .. }, Input::Begin { .. })
            | (Self::Handing { .. }, Input::Part { .. }) => Next::Go(Self::Handing { save }),
            (Self::Handing { .. }, Input::End { .. }) => Next::Go(Self::Handed { save }),
            (_, Input::Refuse { .. }) => Next::Go(Self::Running),
            _ => Next::Cut,
        }
    }
}
