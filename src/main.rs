//! The program `lifeboat`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // One TLS provider, before anything opens a connection: rustls would panic over two.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return lifeboat::cli::BROKEN.into();
    }
    lifeboat::cli::run(std::env::args_os())
}
