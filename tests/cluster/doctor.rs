//! `lifeboat doctor` on the real API server, with the chart's roles and with none: it is told the truth
//! about its rights, and looks at what it may.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat::adapters::signed::Signed;
use lifeboat::clock::Clock;
use lifeboat::commands::doctor;
use lifeboat::commands::doctor::Finding;
use lifeboat::config::Config;
use lifeboat::config::Program;
use lifeboat_chaos::company::objects::Objects;
use lifeboat_chaos::control_plane::identity::Identity;
use lifeboat_chaos::serve::s3_http;
use lifeboat_chaos::serve::s3_store;
use lifeboat_chaos::serve::sqs_client;
use lifeboat_chaos::wire::s3::s3;
use lifeboat_chaos::wire::sqs::sqs;
use lifeboat_chaos::world::World;

use crate::roles;
use crate::theater::on_stage;

/// The namespace of this test's accounts.
const HERE: &str = "doctor-test";

#[test]
fn rights_are_those_of_whoever_asks_and_what_is_refused_is_said() {
    on_stage(async |turn| {
        let account = |name| Identity::account(HERE, name);
        let stranger = turn.plane().client_of(&account("stranger")).await.unwrap();
        let controller = turn.plane().client_of(&account("controller-0")).await.unwrap();
        roles::grant(&Objects::new(turn.plane().client()), HERE).await;

        let of_controller = examine(controller).await;
        let all = format!("`system:serviceaccount:{HERE}:controller-0` has all ");
        assert!(of_controller.iter().any(|found| found.starts_with(&all)), "{of_controller:#?}");
        // What the controller itself has no use for, only the chart's test may list.
        let jobs = "the list of Jobs was not read";
        assert!(of_controller.iter().any(|found| found.starts_with(jobs)), "{of_controller:#?}");
        assert!(of_controller.iter().any(|found| found.contains("nodes are cared for")));

        let of_stranger = examine(stranger).await;
        let none = format!("`system:serviceaccount:{HERE}:stranger` may not ");
        assert!(of_stranger.iter().any(|found| found.starts_with(&none)), "{of_stranger:#?}");

        let of_admin = examine(turn.plane().client()).await;
        assert!(!of_admin.iter().any(|found| found.starts_with("the list of")), "{of_admin:#?}");
        assert!(
            of_admin
                .iter()
                .any(|found| found.contains("definition") && found.contains("is installed"))
        );
    });
}

/// The API server is the real one, AWS is simulated.
async fn examine(kube: kube::Client) -> Vec<String> {
    let text = format!(
        "cluster = \"east\"\nregion = \"us-east-2\"\nnamespace = \"{HERE}\"\n\
         queue.url = \"http://sqs.simulated/123456789012/ours\"\nstore.bucket = \"checkpoints\"\n"
    );
    let config = Config::parse(Program::Controller, &text).unwrap();
    let world = World::new(Clock::starting_at(Timestamp::UNIX_EPOCH, 0), 7);
    let store = s3_store(&s3(world.clone()), "checkpoints").unwrap();
    let signed = Signed {
        http: s3_http(&s3(world.clone())),
        credentials: store.credentials().clone(),
        bucket: "http://s3.simulated/checkpoints".to_owned(),
        bucket_region: "us-east-2".to_owned(),
        events: "http://events.simulated".to_owned(),
        region: "us-east-2".to_owned(),
    };
    let clients = doctor::Clients {
        kube: Ok(kube),
        sqs: sqs_client(&sqs(world)),
        store: Arc::new(store),
        signed,
        clock: Clock::system(),
    };
    let findings: Vec<Finding> = doctor::examine(&config, &clients).await;
    findings.into_iter().map(|finding| finding.found).collect()
}
