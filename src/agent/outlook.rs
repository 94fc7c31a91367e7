//! What of the outlook is news: said once, again when it turns, and now and then while a save is
//! under way.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::budget::Fit;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::node::outlook::Outlook;
use lifeboat_domain::node::outlook::Save;

/// How often a save under way is told of again.
const AGAIN: Duration = Duration::from_secs(15);

/// How much must be to spare before a workload that could not be saved is said to be safe again: a
/// rate that is measured anew moves a little each time.
const SAFE: Duration = Duration::from_secs(10);

/// What was said of each workload.
#[derive(Debug, Default)]
pub struct Foresight {
    said: BTreeMap<(PodUid, Kind), Said>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    too_late: bool,
    at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    UnderWay,
    AtNotice,
}

impl Foresight {
    /// What is to be said now, and is taken for said from here on.
    pub fn news(
        &mut self,
        outlooks: &BTreeMap<PodUid, Outlook>,
        now: Timestamp,
    ) -> Vec<(PodUid, Outlook)> {
        let mut news = Vec::new();
        for (uid, outlook) in outlooks {
            let which = (uid.clone(), kind(outlook));
            let said = Said { too_late: outlook.is_too_late(), at: now };
            if is_news(self.said.get(&which).copied(), said, outlook) {
                news.push((uid.clone(), *outlook));
                self.said.insert(which, said);
            }
        }
        // A save that ended and another that begins are two. What was said of a notice stays said
        // until it is taken back, whatever is saved meanwhile.
        let goes_on =
            |uid: &PodUid| outlooks.get(uid).is_some_and(|one| kind(one) == Kind::UnderWay);
        self.said.retain(|(uid, kind), _| *kind == Kind::AtNotice || goes_on(uid));
        news
    }

    /// Forgets a pod that is over.
    pub fn forget(&mut self, pod: &PodUid) {
        self.said.retain(|(uid, _), _| uid != pod);
    }
}

fn kind(outlook: &Outlook) -> Kind {
    match outlook.of {
        Save::UnderWay { .. } => Kind::UnderWay,
        Save::AtNotice => Kind::AtNotice,
    }
}

fn is_news(before: Option<Said>, said: Said, outlook: &Outlook) -> bool {
    match (before, kind(outlook)) {
        (None, Kind::UnderWay) => true,
        (None, Kind::AtNotice) => said.too_late,
        (Some(before), Kind::UnderWay) => {
            before.too_late != said.too_late || elapsed(before.at, said.at) >= AGAIN
        }
        (Some(before), Kind::AtNotice) => {
            let safe = matches!(outlook.fit, Fit::Fits { margin } if margin >= SAFE);
            if before.too_late { safe } else { said.too_late }
        }
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_domain::budget::Rate;

    use super::*;

    fn outlook(of: Save, margin: Option<u64>) -> BTreeMap<PodUid, Outlook> {
        let margin = margin.map(Duration::from_secs);
        let fit = margin.map_or(Fit::WillNotFit, |margin| Fit::Fits { margin });
        let rate = Rate::Unknown.expected();
        let outlook = Outlook { of, bytes: 1, eta: Duration::ZERO, fit, rate };
        BTreeMap::from([("a".parse().unwrap(), outlook)])
    }

    /// Whether each of these is news, at these seconds.
    fn check(of: Save, looks: &[(i64, Option<u64>, bool)]) {
        let mut foresight = Foresight::default();
        for (second, margin, expected) in looks {
            let now = Timestamp::from_second(*second).unwrap();
            let news = foresight.news(&outlook(of, *margin), now);
            assert_eq!(!news.is_empty(), *expected, "at {second}");
        }
    }

    #[test]
    fn a_save_under_way_is_told_at_once_when_it_turns_and_every_15_seconds() {
        let looks = [
            (0, Some(60), true),
            (1, Some(59), false),
            (2, None, true),
            (3, None, false),
            (16, None, false),
            (17, None, true),
            (18, Some(1), true),
        ];
        check(Save::UnderWay { deadline: None }, &looks);
    }

    #[test]
    fn a_state_that_would_not_fit_is_told_once_and_taken_back_when_it_is_safe() {
        let looks = [
            (0, Some(60), false),
            (60, None, true),
            (120, None, false),
            (180, Some(9), false),
            (240, Some(10), true),
            (300, Some(1), false),
            (360, None, true),
        ];
        check(Save::AtNotice, &looks);
    }

    #[test]
    fn a_save_in_between_does_not_repeat_a_warning() {
        let mut foresight = Foresight::default();
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(foresight.news(&outlook(Save::AtNotice, None), now).len(), 1);
        let under_way = outlook(Save::UnderWay { deadline: None }, Some(60));
        assert_eq!(foresight.news(&under_way, now).len(), 1);
        assert_eq!(foresight.news(&outlook(Save::AtNotice, None), now).len(), 0);
    }

    #[test]
    fn a_second_save_is_told_anew() {
        let mut foresight = Foresight::default();
        let now = Timestamp::UNIX_EPOCH;
        let under_way = outlook(Save::UnderWay { deadline: None }, Some(60));
        assert_eq!(foresight.news(&under_way, now).len(), 1);
        assert_eq!(foresight.news(&BTreeMap::new(), now).len(), 0);
        assert_eq!(foresight.news(&under_way, now).len(), 1);
    }
}
