//! Which claim is made, and why none is, row by row.

use super::*;
use crate::policy::Policy;
use crate::replacement::ClaimCondition;
use crate::replacement::ClaimHold;
use crate::replacement::Fleet;
use crate::replacement::Used;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn offering(instance_type: &str, zone: &str) -> Offering {
    Offering { instance_type: instance_type.parse().unwrap(), zone: zone.parse().unwrap() }
}

fn dying() -> DyingClaim {
    DyingClaim {
        name: "gpu-abcde".parse().unwrap(),
        requirements: vec![
            compare(INSTANCE_TYPE, Operator::In, &["g5.12xlarge", "g6.12xlarge"]),
            compare(ZONE, Operator::In, &["us-east-2a", "us-east-2b", "us-east-2c"]),
            compare(CAPACITY_TYPE, Operator::In, &["spot", "on-demand"]),
        ],
        resources: BTreeSet::from(["nvidia.com/gpu".to_owned()]),
        capacity: BTreeMap::from([("nvidia.com/gpu".to_owned(), 4)]),
        termination_time: None,
    }
}

fn facts() -> ReplacementFacts {
    ReplacementFacts {
        dying: Dying::Claim(dying()),
        attempts: Attempts::Known { attempts: BTreeMap::new() },
        offerings: Offerings::Unknown,
        limits: Limits::None,
        overlay: Overlay::NotNeeded,
        fleet: Fleet::default(),
    }
}

fn need() -> Need {
    Need {
        instance: "i-0123456789abcdef0".parse().unwrap(),
        reclaimed: Some(offering("g5.12xlarge", "us-east-2a")),
        pods: vec![PodRequirements::default()],
    }
}

fn policy() -> ReplacementPolicy {
    Policy::standard().replacement
}

/// `name | types | zones | capacity types`, or the reason.
fn told(chosen: Result<ClaimSpec, NoClaim>) -> String {
    match chosen {
        Err(reason) => reason.label().to_owned(),
        Ok(claim) => {
            let values = |key: &str| {
                claim
                    .requirements
                    .iter()
                    .filter(|requirement| requirement.key == key)
                    .flat_map(|requirement| {
                        let not = if requirement.operator == Operator::NotIn { "not " } else { "" };
                        requirement.values.iter().map(move |value| format!("{not}{value}"))
                    })
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            let (types, zones) = (values(INSTANCE_TYPE), values(ZONE));
            let (name, capacity) = (&claim.name, values(CAPACITY_TYPE));
            format!("{name} | {types} | {zones} | {capacity}")
        }
    }
}

#[track_caller]
fn check(facts: &ReplacementFacts, need: &Need, policy: &ReplacementPolicy, expected: &str) {
    assert_eq!(told(choose(facts, need, policy, at(0))), expected);
}

fn gone(attempts: u32) -> Attempts {
    let gone = |number: u32| (number, Attempt::Gone { at: at(-10) });
    Attempts::Known { attempts: (1..=attempts).map(gone).collect() }
}

const WITHOUT_ZONE: &str =
    "i-0123456789abcdef0-1 | g5.12xlarge g6.12xlarge | us-east-2b us-east-2c | spot";
const WITHOUT_TYPE: &str =
    "i-0123456789abcdef0-2 | g6.12xlarge | us-east-2a us-east-2b us-east-2c | spot";

#[test]
fn the_reclaimed_pair_is_left_out_by_the_half_that_leaves_more() {
    check(&facts(), &need(), &policy(), WITHOUT_ZONE);
    let offerings = [
        offering("g6.12xlarge", "us-east-2a"),
        offering("g6.12xlarge", "us-east-2b"),
        offering("g5.12xlarge", "us-east-2a"),
    ];
    let known = ReplacementFacts {
        offerings: Offerings::Known { offerings: offerings.into_iter().collect() },
        ..facts()
    };
    check(&known, &need(), &policy(), &WITHOUT_TYPE.replace("-2 |", "-1 |"));
}

#[test]
fn a_refused_choice_is_followed_by_the_next() {
    let second = ReplacementFacts { attempts: gone(1), ..facts() };
    check(&second, &need(), &policy(), WITHOUT_TYPE);
    let mut on_demand = policy();
    on_demand.on_demand_last = OnDemand::Last;
    on_demand.on_demand_max_nodes = 1;
    let third = ReplacementFacts { attempts: gone(2), ..facts() };
    let expected =
        "i-0123456789abcdef0-3 | g5.12xlarge g6.12xlarge | us-east-2b us-east-2c | on-demand";
    check(&third, &need(), &on_demand, expected);
    let reached = ReplacementFacts { fleet: Fleet { on_demand: 1, ..Fleet::default() }, ..third };
    check(&reached, &need(), &on_demand, "OnDemandLimit");
}

#[test]
fn when_all_were_refused_the_next_round_waits_for_karpenter_to_forget() {
    let third = ReplacementFacts { attempts: gone(2), ..facts() };
    check(&third, &need(), &policy(), "Waiting");
    let later = choose(&third, &need(), &policy(), at(170));
    assert_eq!(told(later), WITHOUT_ZONE.replace("-1 |", "-3 |"));
    let spent = ReplacementFacts { attempts: gone(6), ..facts() };
    check(&spent, &need(), &policy(), "AttemptsSpent");
}

#[test]
fn no_claim_is_made_while_the_last_may_be_alive() {
    let alive = Attempt::Alive {
        condition: ClaimCondition::Asked,
        used: Used::Empty { since: None },
        held: ClaimHold::Held,
    };
    for attempt in [alive, Attempt::Going, Attempt::Unknown] {
        let attempts = Attempts::Known { attempts: BTreeMap::from([(1, attempt)]) };
        check(&ReplacementFacts { attempts, ..facts() }, &need(), &policy(), "Alive");
    }
}

#[test]
fn the_zone_of_a_volume_is_never_left_out() {
    let volume = PodRequirements {
        volume_zones: Some(BTreeSet::from(["us-east-2a".parse().unwrap()])),
        ..PodRequirements::default()
    };
    let with_volume = Need { pods: vec![volume], ..need() };
    let expected = "i-0123456789abcdef0-1 | g6.12xlarge | us-east-2a | spot";
    check(&facts(), &with_volume, &policy(), expected);

    let mut one_type = dying();
    one_type.requirements[0] = compare(INSTANCE_TYPE, Operator::In, &["g5.12xlarge"]);
    let only = ReplacementFacts { dying: Dying::Claim(one_type), ..facts() };
    check(&only, &with_volume, &policy(), "NoOffering");
}

#[test]
fn what_the_pods_require_narrows_the_claim() {
    let pod = PodRequirements {
        all: vec![
            compare("team", Operator::In, &["vision"]),
            compare(OF_ONE_NODE, Operator::In, &["gpu-1"]),
        ],
        one_of: vec![
            vec![compare(INSTANCE_TYPE, Operator::In, &["p5.48xlarge"])],
            vec![compare(INSTANCE_TYPE, Operator::In, &["g6.12xlarge"])],
        ],
        volume_zones: None,
    };
    let narrowed = Need { pods: vec![pod], ..need() };
    let expected = "i-0123456789abcdef0-1 | g6.12xlarge | us-east-2a us-east-2b us-east-2c | spot";
    check(&facts(), &narrowed, &policy(), expected);
    let claim = choose(&facts(), &narrowed, &policy(), at(0)).unwrap();
    let keys: Vec<&str> = claim.requirements.iter().map(|one| one.key.as_str()).collect();
    assert_eq!(keys, [CAPACITY_TYPE, INSTANCE_TYPE, "team", ZONE]);
}

#[test]
fn without_named_values_one_half_is_excluded_by_name() {
    let mut open = dying();
    open.requirements = vec![compare("karpenter.k8s.aws/instance-family", Operator::In, &["g5"])];
    let open = ReplacementFacts { dying: Dying::Claim(open), ..facts() };
    let expected = "i-0123456789abcdef0-1 |  | not us-east-2a | reserved spot";
    check(&open, &need(), &policy(), expected);
}

#[test]
fn every_limit_has_its_reason() {
    let room = |limit: u64| Limits::Known {
        limits: BTreeMap::from([("nvidia.com/gpu".to_owned(), limit)]),
        in_use: BTreeMap::from([("nvidia.com/gpu".to_owned(), 8)]),
    };
    let uncounted = |uncounted| Fleet { uncounted, ..Fleet::default() };
    let rows = [
        (ReplacementFacts { dying: Dying::None, ..facts() }, "NoDyingClaim"),
        (ReplacementFacts { dying: Dying::Unknown, ..facts() }, "Unreadable"),
        (ReplacementFacts { attempts: Attempts::Unknown, ..facts() }, "Unreadable"),
        (ReplacementFacts { overlay: Overlay::Missing, ..facts() }, "NoOverlay"),
        (ReplacementFacts { overlay: Overlay::Unknown, ..facts() }, "Unreadable"),
        (ReplacementFacts { limits: room(11), ..facts() }, "PoolLimits"),
        (ReplacementFacts { limits: room(12), ..facts() }, WITHOUT_ZONE),
        (ReplacementFacts { limits: room(15), fleet: uncounted(1), ..facts() }, "PoolLimits"),
        (ReplacementFacts { limits: room(16), fleet: uncounted(1), ..facts() }, WITHOUT_ZONE),
        (ReplacementFacts { limits: Limits::Unknown, ..facts() }, "Unreadable"),
        (
            ReplacementFacts { fleet: Fleet { in_flight: 10, ..Fleet::default() }, ..facts() },
            "MaxInFlight",
        ),
        (
            ReplacementFacts { fleet: Fleet { in_last_hour: 60, ..Fleet::default() }, ..facts() },
            "MaxPerHour",
        ),
    ];
    for (facts, expected) in rows {
        check(&facts, &need(), &policy(), expected);
    }
    check(&facts(), &Need { pods: Vec::new(), ..need() }, &policy(), "NothingToMove");
    check(&facts(), &Need { reclaimed: None, ..need() }, &policy(), "Unreadable");
    let never = ReplacementPolicy { asked: Asked::Never, ..policy() };
    check(&facts(), &need(), &never, "NotOurs");
}
