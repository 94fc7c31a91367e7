"""AWS on loopback, in this process: moto's server, with a look at each request before it is done.

What moto does otherwise than AWS, as far as these tests meet it:

- It enforces no policy, and does not even attach an `AWS::SQS::QueuePolicy`: who may send is
  compared as text (test_stacks.py).
- It takes events of `aws.*` from anybody, which EventBridge refuses: how else would they come here.
- Events that it delivers may lack `account`; the controller takes that for any account.
- The stack's output names a queue by AWS's own host: the tests take the queue's name, and ask.
- It calls a queue with a KMS key encrypted by SQS's own key, too.
- It neither retries nor dead-letters what a rule could not deliver.
"""

import threading
from collections.abc import Callable

import boto3
from botocore.config import Config
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

REGION = "us-east-2"
# On a machine that is very busy a second try would come before the first is done.
PATIENT = Config(read_timeout=300, retries={"total_max_attempts": 1})
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


class Emulator:
    """A running server; `before` is called with each request's action before it is done."""

    def __init__(self) -> None:
        self.before: Callable[[str], None] = lambda action: None
        application = DomainDispatcherApplication(create_backend_app)

        def watched(environment, start):
            action = environment.get("HTTP_X_AMZ_TARGET", "")
            self.before(action)
            return application(environment, start)

        self.server = make_server("127.0.0.1", 0, watched, threaded=True)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def end(self) -> None:
        self.server.shutdown()

    def client(self, service: str):
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            config=PATIENT,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
