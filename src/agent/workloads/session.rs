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
        match (self, input) {
            (Self::New, Input::Hello) => Next::Go(Self::Running),
            (Self::New, _) | (_, Input::Hello) => Next::Cut,
            (_, Input::Restore | Input::Restored) => self.on_restore(input),
            (Self::Asked { save: asked }, Input::Ready { save, step, still }) if asked == save => {
                Next::Go(Self::Ready { save, step, still })
            }
            (
                _,
                Input::Begin { save }
                | Input::Part { save }
                | Input::End { save }
                | Input::Refuse { save },
            ) => self.on_hand_over(input, save),
            (Self::Finishing, Input::Done) => Next::Go(Self::Finished),
            (
                Self::Asked { save: asked } | Self::Ready { save: asked, .. },
                Input::Tell { save },
            ) if asked == save => Next::Go(Self::Due { save }),
            (_, Input::Done | Input::Ready { .. } | Input::Tell { .. })
            | (
                Self::Restoring | Self::Finishing | Self::Finished,
                Input::Finish | Input::Ask { .. },
            )
            | (Self::Finishing | Self::Finished, Input::Park | Input::GoOn) => Next::Ignore,
            (_, Input::Finish) => Next::Go(Self::Finishing),
            (_, Input::Ask { save }) => Next::Go(Self::Asked { save }),
            (_, Input::Park) => Next::Go(Self::Parked),
            (_, Input::GoOn) => Next::Go(Self::Running),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// In the order of the table's rows.
    const STATES: [State; 11] = [
        State::New,
        State::Running,
        State::Restoring,
        State::Asked { save: 1 },
        State::Ready { save: 1, step: 5, still: Still::No },
        State::Due { save: 1 },
        State::Handing { save: 1 },
        State::Handed { save: 1 },
        State::Parked,
        State::Finishing,
        State::Finished,
    ];

    /// In the order of the table's columns.
    const INPUTS: [Input; 14] = [
        Input::Hello,
        Input::Restore,
        Input::Restored,
        Input::Ready { save: 1, step: 5, still: Still::No },
        Input::Begin { save: 1 },
        Input::Part { save: 1 },
        Input::End { save: 1 },
        Input::Refuse { save: 1 },
        Input::Finish,
        Input::Ask { save: 1 },
        Input::Tell { save: 1 },
        Input::Park,
        Input::GoOn,
        Input::Done,
    ];

    /// What each state makes of each input: the first letters of where it goes, `.` where it is
    /// passed over, `!` where the line is cut.
    const TABLE: [&str; 11] = [
        "new       ru !  !  !  !  !  !  !  !  !  !  !  !  !",
        "running   !  rs .  .  .  .  .  .  fi as .  pa ru .",
        "restoring !  .  rs .  .  .  .  .  .  .  .  pa ru .",
        "asked     !  .  .  re !  !  !  ru fi as du pa ru .",
        "ready     !  .  .  .  !  !  !  ru fi as du pa ru .",
        "due       !  .  .  .  ha !  !  ru fi as .  pa ru .",
        "handing   !  .  .  .  !  ha hd ru fi as .  pa ru .",
        "handed    !  .  .  .  .  .  .  .  fi as .  pa ru .",
        "parked    !  pa .  .  .  .  .  .  fi as .  pa ru .",
        "finishing !  .  .  .  .  .  .  .  .  .  .  .  .  fd",
        "finished  !  .  .  .  .  .  .  .  .  .  .  .  .  .",
    ];

    fn sign(next: Next) -> &'static str {
        match next {
            Next::Ignore => ".",
            Next::Cut => "!",
            Next::Go(state) => match state {
                State::New => "ne",
                State::Running => "ru",
                State::Restoring => "rs",
                State::Asked { .. } => "as",
                State::Ready { .. } => "re",
                State::Due { .. } => "du",
                State::Handing { .. } => "ha",
                State::Handed { .. } => "hd",
                State::Parked => "pa",
                State::Finishing => "fi",
                State::Finished => "fd",
            },
        }
    }

    #[test]
    fn every_state_answers_every_input() {
        for (state, row) in STATES.into_iter().zip(TABLE) {
            let (name, expected) = row.split_at(10);
            let found: Vec<&str> = INPUTS.map(|input| sign(state.on(input))).to_vec();
            let expected: Vec<&str> = expected.split_whitespace().collect();
            assert_eq!(found, expected, "{}", name.trim());
        }
    }

    #[test]
    fn what_belongs_to_another_save_is_passed_over() {
        let asked = State::Asked { save: 2 };
        assert_eq!(asked.on(Input::Ready { save: 1, step: 5, still: Still::No }), Next::Ignore);
        assert_eq!(asked.on(Input::Tell { save: 1 }), Next::Ignore);
        for state in [State::Due { save: 2 }, State::Handing { save: 2 }, asked] {
            assert_eq!(state.on(Input::Begin { save: 1 }), Next::Ignore);
            assert_eq!(state.on(Input::Part { save: 1 }), Next::Ignore);
            assert_eq!(state.on(Input::Refuse { save: 1 }), Next::Ignore);
        }
    }
}
