"""What the stack delivers, and what the production controller makes of it."""

import copy
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from conftest import Deployed
from emulator import CREDENTIALS, REGION
from files import HERE, PATTERNS, SAMPLES

PROGRAMS = Path(os.environ.get("LIFEBOAT_PROGRAMS", HERE / "../target/release"))
# Generous: it is only waited for in full where something is broken.
PATIENCE = 60
RECORDS = "/apis/lifeboat.dev/v1alpha1/nodeinterruptions"


def put(stack, event: dict) -> None:
    entry = {
        "Source": event["source"],
        "DetailType": event["detail-type"],
        "Detail": json.dumps(event["detail"]),
        "Resources": [event["resources"]]
        if isinstance(event.get("resources"), str)
        else event.get("resources", []),
        "Time": datetime.now(UTC),
    }
    answer = stack.bus.put_events(Entries=[entry])
    assert answer["FailedEntryCount"] == 0, answer


def eventually(what: str, look) -> object:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if found := look():
            return found
        time.sleep(0.1)
    pytest.fail(f"{what}: not within {PATIENCE} s")


def test_the_queues_are_as_the_controller_wants_them(stack):
    outputs = stack.outputs()
    ours, dead = stack.attributes(stack.queue), stack.attributes(stack.dead)
    assert (outputs["QueueArn"], outputs["DeadLetterQueueArn"]) == (
        ours["QueueArn"],
        dead["QueueArn"],
    )
    assert outputs["QueueUrl"].endswith(f"/lifeboat-{stack.cluster}")
    assert (ours["VisibilityTimeout"], ours["ReceiveMessageWaitTimeSeconds"]) == ("30", "20")
    assert (ours["MessageRetentionPeriod"], dead["MessageRetentionPeriod"]) == ("345600", "1209600")
    assert json.loads(ours["RedrivePolicy"])["deadLetterTargetArn"] == dead["QueueArn"]
    assert ours["SqsManagedSseEnabled"] == dead["SqsManagedSseEnabled"] == "true"


def test_a_key_takes_the_place_of_sqs_own(emulator):
    stack = Deployed(emulator, "with-a-key")
    key = f"arn:aws:kms:{REGION}:123456789012:key/12345678-1234-1234-1234-123456789012"
    stack.create(KmsKeyArn=key)
    for queue in (stack.queue, stack.dead):
        assert stack.attributes(queue)["KmsMasterKeyId"] == key


def test_rules_deliver_their_kinds_and_nothing_else(stack):
    for name in SAMPLES:
        put(stack, SAMPLES[name])
    running = copy.deepcopy(SAMPLES["state-change"])
    running["detail"]["state"] = "running"
    put(stack, running)
    issue = copy.deepcopy(SAMPLES["scheduled-change"])
    issue["detail"]["eventTypeCategory"] = "issue"
    put(stack, issue)
    bodies = []
    while messages := stack.queues.receive_message(
        QueueUrl=stack.queue, MaxNumberOfMessages=10, WaitTimeSeconds=0
    ).get("Messages"):
        bodies += [json.loads(message["Body"]) for message in messages]

    def key(event: dict) -> str:
        return json.dumps([event["detail-type"], event["detail"]], sort_keys=True)

    assert sorted(map(key, bodies)) == sorted(map(key, SAMPLES.values()))
    assert {body["region"] for body in bodies} == {REGION}


def test_what_nobody_takes_goes_to_the_dead_letters(stack):
    attributes = stack.attributes(stack.queue)
    receives = json.loads(attributes["RedrivePolicy"])["maxReceiveCount"]
    stack.queues.send_message(QueueUrl=stack.queue, MessageBody="not an event")
    for _ in range(int(receives) + 1):
        stack.queues.receive_message(QueueUrl=stack.queue, VisibilityTimeout=0, WaitTimeSeconds=0)
    assert (stack.held(stack.queue), stack.held(stack.dead)) == (0, 1)


def test_karpenters_queue_alone_is_delayed(emulator, stack, tmp_path):
    karpenter = stack.queues.create_queue(QueueName="karpenter")["QueueUrl"]
    # The real AWS CLI, but for the address.
    client = tmp_path / "aws"
    client.write_text(f'#!/bin/sh\nexec {shutil.which("aws")} --endpoint-url {emulator.url} "$@"\n')
    client.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "AWS_DEFAULT_REGION": REGION}

    def delay(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [HERE / "delay-karpenter", *arguments],
            env={**os.environ, **CREDENTIALS, **path},
            capture_output=True,
            text=True,
        )

    done = delay("karpenter")
    assert done.returncode == 0, done.stderr
    assert "delayed by 5 s" in done.stdout
    stack.queues.send_message(QueueUrl=karpenter, MessageBody="hello")
    assert stack.attributes(karpenter)["ApproximateNumberOfMessagesDelayed"] == "1"
    assert stack.attributes(stack.queue)["DelaySeconds"] == "0"
    assert delay("karpenter", "31").returncode == 64
    ours = delay(f"lifeboat-{stack.cluster}")
    assert ours.returncode == 64 and "own queue" in ours.stderr
    assert stack.attributes(stack.queue)["DelaySeconds"] == "0"


class Cluster:
    """The simulated Kubernetes API: one node, `gpu-1`, and nobody on it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [PROGRAMS / "chaos", "serve"], stdout=subprocess.PIPE, text=True
        )
        self.addresses = {}
        while "hostRoot" not in self.addresses:
            line = self.process.stdout.readline()
            assert line, "`chaos serve` ended"
            name, address = line.split()
            self.addresses[name] = address
        provider = self.get("/api/v1/nodes/gpu-1")["spec"]["providerID"]
        self.instance = provider.rsplit("/", 1)[1]

    def get(self, path: str) -> dict | None:
        try:
            with urllib.request.urlopen(self.addresses["kubernetes"] + path) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def signals(self) -> dict:
        record = self.get(f"{RECORDS}/{self.instance}")
        return record["spec"]["signals"] if record else {}

    def has_taint(self, start: str) -> bool:
        taints = self.get("/api/v1/nodes/gpu-1")["spec"].get("taints", [])
        return any(f"{taint['key']}={taint.get('value')}".startswith(start) for taint in taints)


@pytest.fixture
def cluster():
    if not all((PROGRAMS / name).exists() for name in ("chaos", "lifeboat")):
        pytest.skip(f"the programs are not built in {PROGRAMS}")
    running = Cluster()
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture
def controller(cluster, emulator, stack, tmp_path):
    path = stack.queue.split("/", 3)[3]
    bucket = cluster.addresses["s3"].rsplit("/", 1)
    environment = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "LIFEBOAT_ADMIN_LISTEN": "127.0.0.1:0",
        "LIFEBOAT_CLUSTER": "emulated",
        "LIFEBOAT_KUBERNETES_SERVER": cluster.addresses["kubernetes"],
        "LIFEBOAT_LOG_FORMAT": "text",
        "LIFEBOAT_QUEUE_ENDPOINT": emulator.url,
        "LIFEBOAT_QUEUE_URL": f"{emulator.url}/{path}",
        "LIFEBOAT_REGION": REGION,
        "LIFEBOAT_STORE_BUCKET": bucket[1],
        "LIFEBOAT_STORE_ENDPOINT": bucket[0],
    }
    environment = {**os.environ, **CREDENTIALS, **environment}
    # It would warn of a key that it does not have.
    environment.pop("LIFEBOAT_PROGRAMS", None)
    log = tmp_path / "controller.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [PROGRAMS / "lifeboat", "controller"],
            env=environment,
            stdout=output,
            stderr=output,
        )
    yield process
    process.terminate()
    code = process.wait(PATIENCE)
    print(log.read_text())
    assert code == 0


def about(sample: dict, instance: str) -> dict:
    """The sample, about this instance, and happening now."""
    text = json.dumps(sample).replace("i-1234567890abcdef0", instance)
    event = json.loads(text)
    soon = datetime.now(UTC) + timedelta(minutes=30)
    if "instance-termination-time" in event["detail"]:
        event["detail"]["instance-termination-time"] = soon.strftime("%Y-%m-%dT%H:%M:%SZ")
    if "startTime" in event["detail"]:
        event["detail"]["startTime"] = soon.strftime("%a, %d %b %Y %H:%M:%S GMT")
    return event


# The gentle first: a fence is not set twice.
ORDER = [
    "rebalance-recommendation",
    "spot-interruption",
    "scheduled-change",
    "capacity-reservation",
    "state-change",
]
TAINTS = {
    "rebalance-recommendation": "lifeboat.dev/at-risk=",
    "spot-interruption": "lifeboat.dev/interrupted=spot-interruption",
}


@pytest.mark.usefixtures("controller")
def test_the_controller_acts_on_what_the_rules_deliver(cluster, emulator, stack):
    assert set(ORDER) == set(PATTERNS)
    recorded = []

    def before(action: str) -> None:
        if action.endswith("DeleteMessageBatch"):
            recorded.append(set(cluster.signals()))

    emulator.before = before
    told = set()
    for kind in ORDER:
        put(stack, about(SAMPLES[kind], cluster.instance))
        told.add(f"queue-{kind}")
        eventually(f"the message of {kind} deleted", lambda: not stack.held(stack.queue))
        # When its deletion was asked for, its record was there.
        assert told <= recorded[-1]
        if taint := TAINTS.get(kind):
            eventually(taint, lambda: cluster.has_taint(taint))
    assert stack.held(stack.dead) == 0


@pytest.mark.usefixtures("controller")
def test_what_the_controller_cannot_read_is_left_to_the_redrive(cluster, emulator, stack):
    deleted = []
    emulator.before = lambda action: deleted.append(action) if "Delete" in action else None
    stack.queues.send_message(QueueUrl=stack.queue, MessageBody="not an event")
    # A stranger's is deleted at once, so that the queue was read and the other one left.
    put(stack, about(SAMPLES["rebalance-recommendation"], "i-0fedcba9876543210"))
    eventually("the stranger's message deleted", lambda: deleted)
    hidden = "ApproximateNumberOfMessagesNotVisible"
    eventually("the other one left", lambda: stack.attributes(stack.queue)[hidden] == "1")
    assert cluster.get(RECORDS)["items"] == []
