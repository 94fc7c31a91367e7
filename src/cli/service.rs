//! The two programs that run until they are asked to end.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;
use tracing::info;
use tracing::warn;

use super::BROKEN;
use super::Failure;
use super::Settings;
use super::UNAVAILABLE;
use super::load;
use super::runtime;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::Program;
use crate::metrics;
use crate::offload::Offload;
use crate::shutdown::Shutdown;
use crate::telemetry;
use crate::wiring;
use crate::wiring::AgentClients;
use crate::wiring::ControllerClients;

pub(super) fn controller(settings: &Settings) -> Result<(), Failure> {
    let config = load(Program::Controller, settings)?;
    run("controller", config, async |config, shutdown| {
        let clients = ControllerClients::connect(&config).await?;
        let clock = Clock::system();
        let reached = wiring::reach_controller(&config, &clients, &clock);
        let run = wiring::controller(config.clone(), clients.clone(), clock.clone(), shutdown);
        Box::pin(beside(reached, run)).await.map_err(|error| Failure::new(UNAVAILABLE, &error))
    })
}

pub(super) fn agent(settings: &Settings) -> Result<(), Failure> {
    let config = load(Program::Agent, settings)?;
    run("agent", config, async |config, shutdown| {
        let clients = AgentClients::connect(&config).await?;
        let runtime = wiring::Runtime { clock: Clock::system(), offload: Offload::Threads };
        let reached = wiring::reach_agent(&config, &clients, &runtime.clock);
        let run = wiring::agent(config.clone(), clients.clone(), runtime.clone(), shutdown);
        Box::pin(beside(reached, run)).await.map_err(|error| Failure::new(UNAVAILABLE, &error))
    })
}

/// Runs `program` beside the admin server until it ends by itself, or a second SIGTERM ends it.
fn run(
    name: &'static str,
    config: Config,
    program: impl AsyncFnOnce(Config, Shutdown) -> Result<(), Failure>,
) -> Result<(), Failure> {
    telemetry::init(&config.log);
    runtime()?.block_on(async {
        info!(program = name, version = env!("CARGO_PKG_VERSION"), ?config, "started");
        for warning in &config.warnings {
            warn!("{warning}");
        }
        let shutdown = Shutdown::new();
        let admin = admin(config.admin.listen, shutdown.clone()).await?;
        let ended = tokio::select! {
            biased;
            () = shutdown.at_once() => Ok(()),
            ended = program(config, shutdown.clone()) => ended,
            Err(error) = shutdown.listen() => Err(Failure::new(BROKEN, &error)),
            Err(error) = admin => Err(Failure::new(UNAVAILABLE, &error)),
        };
        info!(program = name, "ended");
        ended
    })
}

/// Runs `program`, with `other` beside it for as long as that has something to do.
async fn beside<T>(other: impl Future<Output = ()>, program: impl Future<Output = T>) -> T {
    let never = async {
        other.await;
        std::future::pending().await
    };
    tokio::select! {
        biased;
        ended = program => ended,
        ended = never => ended,
    }
}

async fn admin(
    listen: SocketAddr,
    shutdown: Shutdown,
) -> Result<impl Future<Output = io::Result<()>>, Failure> {
    match TcpListener::bind(listen).await {
        Ok(listener) => {
            let until = async move { shutdown.at_once().await };
            Ok(telemetry::serve(listener, metrics::render, until))
        }
        Err(error) => {
            let text = format!("`admin.listen` {listen} was not bound: {error}");
            Err(Failure { code: UNAVAILABLE, text })
        }
    }
}
