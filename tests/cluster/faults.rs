//! What goes on when our programs or the API server die in the middle of it.

use std::time::Duration;

use lifeboat_chaos::company::Company;
use lifeboat_chaos::company::objects::LEASE;
use lifeboat_chaos::company::objects::POD;
use lifeboat_chaos::control_plane::Part;
use lifeboat_chaos::programs;
use lifeboat_chaos::world::cluster::object::annotation;
use lifeboat_chaos::world::cluster::object::items;
use lifeboat_chaos::world::cluster::object::text;

use crate::story;
use crate::story::Place;
use crate::theater::Turn;
use crate::theater::eventually;
use crate::theater::on_stage;

/// How long both replicas live each time: less than one needs to lead, and more.
const LIVES: [Duration; 6] = [
    Duration::from_millis(300),
    Duration::from_millis(700),
    Duration::from_millis(1_500),
    Duration::from_millis(2_500),
    Duration::from_millis(4_200),
    Duration::from_millis(5_500),
];
/// Our mark beside a hold: the instance that it is for.
const HELD: &str = "lifeboat.dev/held";

/// The leader is killed in the middle of three interruptions: the other replica finishes them, and
/// nothing is done twice.
#[test]
fn the_other_replica_finishes_what_a_killed_leader_began() {
    on_stage(async |turn: Turn| {
        let (mut company, places) = three_are_warned_of(&turn, "leader").await;
        let leader = leader(&company).await;
        company.kill_controller(leader).await;
        each_goes_on_once(&turn, &company, &places).await;
        no_message_is_left(&company).await;
        company.end().await;
    });
}

/// The API server dies and comes back while the pods are being saved.
#[test]
fn an_api_server_that_comes_back_finds_everything_going_on() {
    on_stage(async |mut turn: Turn| {
        let (company, places) = three_are_warned_of(&turn, "reborn").await;
        turn.plane_mut().restart(Part::ApiServer).await.unwrap();
        each_goes_on_once(&turn, &company, &places).await;
        no_message_is_left(&company).await;
        company.end().await;
    });
}

/// Both replicas are killed when a pod is held. The agent saves it alone; when they are back the pod
/// is let go, and no hold is left on anything.
#[test]
fn no_hold_is_left_behind_by_a_killed_lifeboat() {
    on_stage(async |turn: Turn| {
        let mut settings = turn.settings("holds");
        settings.karpenter_hears = Some(Duration::from_secs(5));
        let mut company = turn.company(settings).await;
        company.start_controller(0).unwrap();
        company.start_controller(1).unwrap();
        company.add_pool(&["g5.xlarge", "g6.xlarge"]).await.unwrap();
        company.add_job("job train-h hold on-signal grace 600s step 3s").await.unwrap();
        let old = story::until_it_trains(&company, "train-h").await;
        let instance = company.instance_of(&old.node);
        company.warn(&instance);
        eventually("the hold", async || {
            let pod = company.objects.find(POD, ("default", &old.pod)).await?;
            (annotation(&pod, HELD) == instance).then_some(())
        })
        .await;
        company.kill_controller(0).await;
        company.kill_controller(1).await;
        let saved = eventually("the save", async || story::saved(&company.events(), &old.pod));
        let (_, saved) = saved.await;
        assert!(story::ended_by(&turn, &old.pod).is_empty(), "ended while nobody could");

        company.start_controller(0).unwrap();
        company.start_controller(1).unwrap();
        let (_, step) = story::until_it_resumes(&company, "train-h").await;
        assert_eq!(step, saved);
        assert_eq!(story::ended_by(&turn, &old.pod).len(), 1);
        eventually("no hold on anything", async || {
            let pods = company.objects.list(POD, &company.selector()).await;
            pods.iter().all(|pod| annotation(pod, HELD).is_empty()).then_some(())
        })
        .await;
        company.end().await;
    });
}

/// The leader is dead and its Lease still holds: the other replica fences all the same, and takes
/// the Lease over when its time is up.
#[test]
fn a_fence_does_not_wait_for_the_lease() {
    on_stage(async |turn: Turn| {
        let mut company = turn.company(turn.settings("lease")).await;
        company.start_controller(0).unwrap();
        company.start_controller(1).unwrap();
        company.add_pool(&["g5.xlarge", "g6.xlarge"]).await.unwrap();
        company.add_job("job train-l grace 60s").await.unwrap();
        let old = story::until_it_trains(&company, "train-l").await;
        let dead = leader(&company).await;
        company.kill_controller(dead).await;
        company.warn(&company.instance_of(&old.node));
        story::until_it_resumes(&company, "train-l").await;
        let other = turn.asked_by(&format!(":controller-{}", 1 - dead));
        let fenced = other.iter().find(|one| one.resource == "nodes" && one.verb == "patch");
        let led = other.iter().find(|one| one.resource == "leases" && one.verb == "update");
        let (fenced, led) = (fenced.expect("fenced").received, led.expect("led").received);
        assert!(fenced < led, "fenced at {fenced}, and leader only since {led}");
        company.end().await;
    });
}

/// Both replicas die again and again, at whatever moment it is, from the notice on. Where nobody
/// lives to hold a pod Karpenter may end it first: it is saved all the same, and no hold is left.
#[test]
fn a_lifeboat_that_dies_again_and_again_finishes_once() {
    on_stage(async |turn: Turn| {
        let settings = turn.settings("again").with("lease.duration", "3s");
        let mut company = turn.company(settings.with("lease.renew", "1s")).await;
        company.start_controller(0).unwrap();
        company.start_controller(1).unwrap();
        let places = three_train(&company, "hold on-signal").await;
        for place in &places {
            company.warn(&company.instance_of(&place.node));
        }
        for life in LIVES {
            company.kill_controller(0).await;
            company.kill_controller(1).await;
            company.start_controller(0).unwrap();
            company.start_controller(1).unwrap();
            tokio::time::sleep(life).await;
        }
        for (number, old) in places.iter().enumerate() {
            let (_, step) = story::until_it_resumes(&company, &format!("train-{number}")).await;
            let events = company.events();
            let (saved_at, saved) = story::saved(&events, &old.pod).unwrap();
            let (exited_at, _) = story::exited(&events, &old.pod).unwrap();
            assert!(step == saved && saved_at <= exited_at, "train-{number} ended unsaved");
            let ours = story::ended_by(&turn, &old.pod).into_iter();
            let ours = ours.filter(|end| end.user.contains(":again:"));
            assert!(ours.count() <= 1, "train-{number} was ended twice");
        }
        let pods = company.objects.list(POD, &company.selector()).await;
        assert!(pods.iter().all(|pod| annotation(pod, HELD).is_empty()), "a hold is left");
        company.end().await;
    });
}

/// Two replicas, and three jobs whose nodes are warned of; the first is fenced.
async fn three_are_warned_of(turn: &Turn, name: &str) -> (Company, Vec<Place>) {
    let mut company = turn.company(turn.settings(name)).await;
    company.start_controller(0).unwrap();
    company.start_controller(1).unwrap();
    let places = three_train(&company, "hold always").await;
    for place in &places {
        company.warn(&company.instance_of(&place.node));
    }
    until_fenced(&company, &places[0].node).await;
    (company, places)
}

/// Three jobs, each on a node of its own, whose next safe point is some seconds away.
async fn three_train(company: &Company, options: &str) -> Vec<Place> {
    company.add_pool(&["g5.xlarge", "g6.xlarge"]).await.unwrap();
    for number in 0..3 {
        let line = format!("job train-{number} grace 120s step 6s {options}");
        company.add_job(&line).await.unwrap();
    }
    let mut places = Vec::new();
    for number in 0..3 {
        places.push(story::until_it_trains(company, &format!("train-{number}")).await);
    }
    places
}

async fn until_fenced(company: &Company, node: &str) {
    eventually("the fence", async || {
        let node = story::node(company, node).await?;
        let mut taints = items(&node, "/spec/taints").iter();
        taints.any(|taint| taint["key"] == "lifeboat.dev/interrupted").then_some(())
    })
    .await;
}

/// The number of the replica that holds the Lease.
async fn leader(company: &Company) -> u32 {
    eventually("the leader", async || {
        let lease = company.objects.find(LEASE, (company.name(), "lifeboat-controller")).await?;
        text(&lease, "/spec/holderIdentity").strip_prefix("controller-")?.parse().ok()
    })
    .await
}

/// Each pod was saved, ended by us once, and its work goes on; for each node one was bought.
async fn each_goes_on_once(turn: &Turn, company: &Company, places: &[Place]) {
    for (number, old) in places.iter().enumerate() {
        let (_, step) = story::until_it_resumes(company, &format!("train-{number}")).await;
        let (saved_at, saved) = story::saved(&company.events(), &old.pod).unwrap();
        assert_eq!(step, saved, "train-{number} went on elsewhere");
        let ends = story::ended_by(turn, &old.pod);
        let [end] = &ends[..] else { panic!("train-{number} was ended by {ends:?}") };
        assert!(end.user.contains(company.name()) && end.received >= saved_at, "{end:?}");
    }
    for old in places {
        let bought = story::asked_for(turn, &company.instance_of(&old.node));
        assert!(bought.len() == 1 && bought[0].what == "launch", "{bought:?}");
    }
}

/// What a killed replica had in its hands comes back when its visibility ends, and goes then.
async fn no_message_is_left(company: &Company) {
    eventually("an empty queue", async || {
        let now = company.world.now();
        let depth = company.world.read(|state| state.queues.depth(programs::QUEUE, now)).unwrap();
        (depth.visible + depth.in_flight + depth.delayed == 0).then_some(())
    })
    .await;
}
