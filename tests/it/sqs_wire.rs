//! The simulated SQS, asked by the real client in virtual time: one test for each rule we rely on.

use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_sdk_sqs::operation::receive_message::builders::ReceiveMessageFluentBuilder;
use aws_sdk_sqs::types::DeleteMessageBatchRequestEntry;
use aws_sdk_sqs::types::Message;
use aws_sdk_sqs::types::MessageSystemAttributeName;
use aws_sdk_sqs::types::QueueAttributeName;
use jiff::Timestamp;
use lifeboat::adapters::sqs::Queue;
use lifeboat::adapters::sqs::QueueError;
use lifeboat::clock::Clock;
use lifeboat_chaos::serve::sqs_client;
use lifeboat_chaos::wire::sqs::sqs;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::queue::Redrive;
use lifeboat_chaos::world::queue::Settings;
use tokio::time::Instant;

const URL: &str = "http://sqs.simulated/123456789012/ours";

fn world(settings: Settings) -> (World, Client) {
    let clock = Clock::starting_at(Timestamp::from_second(1_800_000_000).unwrap(), 0);
    let world = World::new(clock, 1);
    world.update(|state| {
        state.queues.create("dead", Settings::default());
        state.queues.create("ours", settings);
    });
    let client = sqs_client(&sqs(world.clone()));
    (world, client)
}

fn send(world: &World, body: &str) {
    let now = world.now();
    world.update(|state| state.queues.send("ours", body, now)).unwrap();
}

fn poll(client: &Client, wait: i32) -> ReceiveMessageFluentBuilder {
    client.receive_message().queue_url(URL).wait_time_seconds(wait).max_number_of_messages(10)
}

async fn receive(client: &Client, wait: i32) -> Vec<Message> {
    poll(client, wait).send().await.unwrap().messages.unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_message_comes_out_as_it_went_in_with_its_digest() {
    let (_, client) = world(Settings::default());
    let sent = client.send_message().queue_url(URL).message_body("hello").send().await.unwrap();
    assert_eq!(sent.md5_of_message_body(), Some("5d41402abc4b2a76b9719d911017c592"));
    let messages = receive(&client, 0).await;
    assert_eq!(messages[0].body(), Some("hello"));
    assert_eq!(messages[0].md5_of_body(), sent.md5_of_message_body());
    assert_eq!(messages[0].message_id(), sent.message_id());
    assert_eq!(messages[0].attributes(), None);
}

#[tokio::test(start_paused = true)]
async fn an_empty_poll_waits_exactly_its_time() {
    let (_, client) = world(Settings::default());
    let start = Instant::now();
    assert!(receive(&client, 20).await.is_empty());
    assert_eq!(start.elapsed(), Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_wakes_when_a_message_is_sent() {
    let (world, client) = world(Settings::default());
    let start = Instant::now();
    let sender = async {
        tokio::time::sleep(Duration::from_secs(7)).await;
        send(&world, "notice");
    };
    let (messages, ()) = tokio::join!(receive(&client, 20), sender);
    assert_eq!(messages.len(), 1);
    assert_eq!(start.elapsed(), Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn of_two_pollers_only_one_gets_the_message() {
    let (world, client) = world(Settings::default());
    let sender = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        send(&world, "notice");
    };
    let (first, second, ()) = tokio::join!(receive(&client, 20), receive(&client, 20), sender);
    assert_eq!((first.len(), second.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_comes_again_when_its_visibility_has_run_out() {
    let (world, client) = world(Settings::default());
    send(&world, "notice");
    let start = Instant::now();
    let asked = poll(&client, 0)
        .visibility_timeout(15)
        .message_system_attribute_names(MessageSystemAttributeName::All);
    let first = asked.clone().send().await.unwrap();
    assert_eq!(count(&first.messages()[0]), "1");
    let second = asked.wait_time_seconds(20).send().await.unwrap();
    assert_eq!(count(&second.messages()[0]), "2");
    assert_eq!(start.elapsed(), Duration::from_secs(15));
    let sent =
        &second.messages()[0].attributes().unwrap()[&MessageSystemAttributeName::SentTimestamp];
    assert_eq!(sent, "1800000000000");
}

fn count(message: &Message) -> &str {
    &message.attributes().unwrap()[&MessageSystemAttributeName::ApproximateReceiveCount]
}

#[tokio::test(start_paused = true)]
async fn visibility_can_be_made_longer_and_ended() {
    let (world, client) = world(Settings::default());
    send(&world, "notice");
    let handle = receive(&client, 0).await[0].receipt_handle().unwrap().to_owned();
    let change = client.change_message_visibility().queue_url(URL).receipt_handle(handle);
    change.clone().visibility_timeout(60).send().await.unwrap();
    tokio::time::sleep(Duration::from_secs(45)).await;
    assert!(receive(&client, 0).await.is_empty());
    change.clone().visibility_timeout(0).send().await.unwrap();
    assert_eq!(receive(&client, 0).await.len(), 1);
    let stale = change.visibility_timeout(9).send().await.unwrap_err();
    assert!(stale.into_service_error().is_receipt_handle_is_invalid());
}

#[tokio::test(start_paused = true)]
async fn a_message_not_in_flight_has_no_visibility_to_change() {
    let (world, client) = world(Settings::default());
    send(&world, "notice");
    let handle = receive(&client, 0).await[0].receipt_handle().unwrap().to_owned();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let change = client.change_message_visibility().queue_url(URL).receipt_handle(handle);
    let late = change.visibility_timeout(9).send().await.unwrap_err();
    assert!(late.into_service_error().is_message_not_inflight());
}

#[tokio::test(start_paused = true)]
async fn a_stale_receipt_deletes_nothing() {
    let (world, client) = world(Settings::default());
    send(&world, "notice");
    let first = receive(&client, 0).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let second = receive(&client, 0).await;
    let delete = client.delete_message().queue_url(URL);
    let stale = delete.clone().receipt_handle(first[0].receipt_handle().unwrap()).send().await;
    assert!(stale.unwrap_err().into_service_error().is_receipt_handle_is_invalid());
    delete.receipt_handle(second[0].receipt_handle().unwrap()).send().await.unwrap();
    assert!(world.read(|state| state.queues.bodies("ours").is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_batch_fails_entry_by_entry() {
    let (world, client) = world(Settings::default());
    send(&world, "one");
    send(&world, "two");
    let messages = receive(&client, 0).await;
    let entry = |id: &str, handle: &str| {
        DeleteMessageBatchRequestEntry::builder().id(id).receipt_handle(handle).build().unwrap()
    };
    let batch = client.delete_message_batch().queue_url(URL);
    let batch = batch.entries(entry("good", messages[0].receipt_handle().unwrap()));
    let output = batch.entries(entry("bad", "made up")).send().await.unwrap();
    assert_eq!(output.successful()[0].id(), "good");
    assert_eq!(
        (output.failed()[0].id(), output.failed()[0].code()),
        ("bad", "ReceiptHandleIsInvalid")
    );
    assert_eq!(world.read(|state| state.queues.bodies("ours").len()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_kept_in_hand_but_for_what_somebody_else_has_by_now() {
    let (world, client) = world(Settings::default());
    for body in ["one", "two", "three"] {
        send(&world, body);
    }
    let queue = Queue::new(client, URL.to_owned());
    let ten = Duration::from_secs(10);
    let ours = queue.receive(Duration::ZERO, ten).await.unwrap();
    queue.extend(&ours[1..2], Duration::ZERO).await.unwrap();
    assert_eq!(queue.receive(Duration::ZERO, ten).await.unwrap().len(), 1);
    let refused = queue.extend(&ours, 6 * ten).await.unwrap();
    assert!(matches!(refused[..], [(1, QueueError::Stale(_))]), "{refused:?}");
    tokio::time::sleep(5 * ten).await;
    let again = queue.receive(Duration::ZERO, ten).await.unwrap();
    assert_eq!(again.iter().map(|message| &*message.body).collect::<Vec<_>>(), ["two"]);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_queue_delivers_later() {
    let delay = Duration::from_secs(5);
    let (world, client) = world(Settings { delay, ..Settings::default() });
    let start = Instant::now();
    send(&world, "notice");
    assert!(receive(&client, 0).await.is_empty());
    assert_eq!(receive(&client, 20).await.len(), 1);
    assert_eq!(start.elapsed(), delay);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_deletes_ends_in_the_dead_letter_queue() {
    let redrive = Redrive { dead_letter_queue: "dead".to_owned(), max_receives: 2 };
    let (world, client) = world(Settings { redrive: Some(redrive), ..Settings::default() });
    send(&world, "noise");
    assert_eq!(receive(&client, 0).await.len(), 1);
    assert_eq!(receive(&client, 20).await.len(), 0);
    assert_eq!(receive(&client, 20).await.len(), 1);
    assert_eq!(receive(&client, 20).await.len(), 0);
    assert_eq!(receive(&client, 20).await.len(), 0);
    let dead = poll(&client, 0)
        .queue_url("http://sqs.simulated/123456789012/dead")
        .message_system_attribute_names(MessageSystemAttributeName::All)
        .send()
        .await
        .unwrap();
    let source = MessageSystemAttributeName::DeadLetterQueueSourceArn;
    let attributes = dead.messages()[0].attributes().unwrap();
    assert_eq!(attributes[&source], "arn:aws:sqs:us-east-2:123456789012:ours");
}

#[tokio::test(start_paused = true)]
async fn a_missing_queue_is_said_to_be_missing() {
    let (_, client) = world(Settings::default());
    let error = poll(&client, 20).queue_url("http://sqs.simulated/1/none").send().await;
    let error = error.unwrap_err().into_service_error();
    assert!(error.is_queue_does_not_exist());
    assert_eq!(error.code(), Some("AWS.SimpleQueueService.NonExistentQueue"));
    let error = client.get_queue_url().queue_name("none").send().await.unwrap_err();
    assert!(error.into_service_error().is_queue_does_not_exist());
}

#[tokio::test(start_paused = true)]
async fn a_queue_tells_its_url_and_its_attributes() {
    let redrive = Redrive { dead_letter_queue: "dead".to_owned(), max_receives: 3 };
    let (world, client) = world(Settings { redrive: Some(redrive), ..Settings::default() });
    send(&world, "notice");
    let url = client.get_queue_url().queue_name("ours").send().await.unwrap();
    assert_eq!(url.queue_url(), Some(URL));
    let all = client.get_queue_attributes().queue_url(URL).attribute_names(QueueAttributeName::All);
    let attributes = all.send().await.unwrap().attributes.unwrap();
    assert_eq!(attributes[&QueueAttributeName::ApproximateNumberOfMessages], "1");
    assert_eq!(attributes[&QueueAttributeName::VisibilityTimeout], "30");
    assert!(attributes[&QueueAttributeName::RedrivePolicy].contains("\"maxReceiveCount\":3"));
}

#[tokio::test(start_paused = true)]
async fn what_the_simulator_does_not_know_is_refused_loudly() {
    let (_, client) = world(Settings::default());
    let error = client.purge_queue().queue_url(URL).send().await.unwrap_err();
    assert_eq!(error.code(), Some("AWS.SimpleQueueService.UnsupportedOperation"));
    let error = poll(&client, 21).send().await.unwrap_err();
    assert_eq!(error.code(), Some("InvalidParameterValue"));
}
