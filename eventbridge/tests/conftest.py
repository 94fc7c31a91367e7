"""The emulator, once for all tests, and on it one stack for each that asks."""

import logging

import pytest

from emulator import Emulator
from files import TEMPLATE


@pytest.fixture(scope="session")
def emulator():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = Emulator()
    yield running
    running.end()


class Deployed:
    """A stack as it was created."""

    def __init__(self, emulator: Emulator, cluster: str) -> None:
        self.emulator = emulator
        self.formation = emulator.client("cloudformation")
        self.queues = emulator.client("sqs")
        self.bus = emulator.client("events")
        self.cluster = cluster

    def create(self, **parameters: str) -> None:
        parameters["ClusterName"] = self.cluster
        said = [{"ParameterKey": name, "ParameterValue": it} for name, it in parameters.items()]
        self.formation.create_stack(
            StackName=self.name, TemplateBody=TEMPLATE.read_text(), Parameters=said
        )
        self.queue = self.queues.get_queue_url(QueueName=f"lifeboat-{self.cluster}")["QueueUrl"]
        self.dead = self.queues.get_queue_url(QueueName=f"lifeboat-{self.cluster}-dead")["QueueUrl"]

    @property
    def name(self) -> str:
        return f"lifeboat-{self.cluster}"

    def outputs(self) -> dict:
        (stack,) = self.formation.describe_stacks(StackName=self.name)["Stacks"]
        assert stack["StackStatus"] == "CREATE_COMPLETE"
        return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}

    def attributes(self, queue: str) -> dict:
        return self.queues.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])[
            "Attributes"
        ]

    def held(self, queue: str) -> int:
        """Messages that lie in a queue, are hidden there, or are still to come up."""
        counted = ("", "NotVisible", "Delayed")
        attributes = self.attributes(queue)
        return sum(int(attributes[f"ApproximateNumberOfMessages{it}"]) for it in counted)


@pytest.fixture
def stack(emulator, request):
    deployed = Deployed(emulator, request.node.name.replace("test_", "").replace("_", "-")[:60])
    deployed.create()
    yield deployed
    emulator.before = lambda action: None
