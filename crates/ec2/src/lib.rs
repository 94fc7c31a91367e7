//! What Lifeboat asks of the EC2 API, in the domain's words; the only place that names its SDK.

use std::collections::BTreeSet;

use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::SdkError;
use aws_sdk_ec2::operation::describe_instance_type_offerings::DescribeInstanceTypeOfferingsError;
use aws_sdk_ec2::operation::describe_instances::DescribeInstancesError;
use aws_sdk_ec2::types::Filter;
use aws_sdk_ec2::types::InstanceStateName;
use aws_sdk_ec2::types::LocationType;
use lifeboat_domain::ids::InstanceId;
use lifeboat_domain::ids::InstanceType;
use lifeboat_domain::replacement::Offering;
use lifeboat_domain::signal::InstanceState;

/// How many values one filter may have.
///
/// Source: EC2 API Reference, "Filter".
const FILTER_MAX: usize = 200;

/// Offerings on one page.
///
/// Source: EC2 API Reference, "DescribeInstanceTypeOfferings": 5 to 1000.
const PAGE: i32 = 1000;

/// Pages that are read at most: a type has one offering for each zone of the region.
const PAGES: usize = 10;

/// The EC2 API of one region. Nothing is tried again by itself.
#[derive(Clone, Debug)]
pub struct Ec2 {
    client: Client,
}

/// Why EC2 did not tell.
#[derive(Debug, thiserror::Error)]
pub enum Ec2Error {
    /// The state of an instance.
    #[error("the state of instance `{instance}` was not read")]
    Instance {
        /// The instance.
        instance: InstanceId,
        /// Why.
        source: Box<SdkError<DescribeInstancesError>>,
    },
    /// What can be bought.
    #[error("the offerings of instance types were not read")]
    Offerings(#[source] Box<SdkError<DescribeInstanceTypeOfferingsError>>),
}

impl Ec2 {
    /// The API that `config` leads to, with its credentials and its HTTP client.
    pub fn new(config: &SdkConfig) -> Self {
        let builder = aws_sdk_ec2::config::Builder::from(config);
        let config = builder.retry_config(RetryConfig::disabled()).build();
        Self { client: Client::from_conf(config) }
    }

    /// The state of an instance; `None` if EC2 does not know it, as some time after its end.
    pub async fn state(&self, instance: &InstanceId) -> Result<Option<InstanceState>, Ec2Error> {
        let request = self.client.describe_instances().instance_ids(instance.as_str());
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if is_unknown_instance(&error) => return Ok(None),
            Err(error) => {
                let instance = instance.clone();
                return Err(Ec2Error::Instance { instance, source: Box::new(error) });
            }
        };
        let mut instances = answer.reservations().iter().flat_map(|one| one.instances());
        let found = instances.find(|found| found.instance_id() == Some(instance.as_str()));
        let name = found.and_then(|found| found.state()?.name());
        Ok(name.map(state))
    }

    /// Which of `types` can be bought in which zone of the region.
    ///
    /// That a pair is offered does not say that there is capacity now.
    pub async fn offerings(
        &self,
        types: &BTreeSet<InstanceType>,
    ) -> Result<BTreeSet<Offering>, Ec2Error> {
        let mut offerings = BTreeSet::new();
        let types: Vec<String> = types.iter().map(|one| one.as_str().to_owned()).collect();
        for some in types.chunks(FILTER_MAX) {
            offerings.extend(self.offerings_of(some).await?);
        }
        Ok(offerings)
    }

    async fn offerings_of(&self, types: &[String]) -> Result<Vec<Offering>, Ec2Error> {
        let filter = Filter::builder().name("instance-type").set_values(Some(types.to_vec()));
        let request = self
            .client
            .describe_instance_type_offerings()
            .location_type(LocationType::AvailabilityZone)
            .filters(filter.build())
            .max_results(PAGE);
        let mut offerings = Vec::new();
        let mut token = None;
        for _ in 0..PAGES {
            let answer = request.clone().set_next_token(token).send().await;
            let answer = answer.map_err(|error| Ec2Error::Offerings(Box::new(error)))?;
            // What this release cannot name cannot be asked for either.
            offerings.extend(answer.instance_type_offerings().iter().filter_map(|one| {
                Some(Offering {
                    instance_type: one.instance_type()?.as_str().parse().ok()?,
                    zone: one.location()?.parse().ok()?,
                })
            }));
            token = answer.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if token.is_none() {
                break;
            }
        }
        Ok(offerings)
    }
}

fn is_unknown_instance(error: &SdkError<DescribeInstancesError>) -> bool {
    let code = error.as_service_error().and_then(|error| error.meta().code());
    code == Some("InvalidInstanceID.NotFound")
}

#[allow(clippy::wildcard_enum_match_arm, reason = "EC2 may add states")]
fn state(name: &InstanceStateName) -> InstanceState {
    match name {
        InstanceStateName::Pending => InstanceState::Pending,
        InstanceStateName::Running => InstanceState::Running,
        InstanceStateName::Stopping => InstanceState::Stopping,
        InstanceStateName::Stopped => InstanceState::Stopped,
        InstanceStateName::ShuttingDown => InstanceState::ShuttingDown,
        InstanceStateName::Terminated => InstanceState::Terminated,
        _ => InstanceState::Unknown,
    }
}
