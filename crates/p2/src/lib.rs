//! p2 trains and samples image diffusion models with perception-prioritized (P2) loss weighting.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests write scratch files")
)]

pub mod bench;
pub mod checkpoint;
pub mod classifier;
pub mod cli;
pub mod codes;
pub mod command;
pub mod config;
pub mod data;
mod digest;
pub mod durable;
pub mod engine;
pub mod fault;
pub mod likelihood;
pub mod model;
pub mod monitor;
pub mod print;
pub mod problem;
pub mod rng;
pub mod run_dir;
pub mod sample;
pub mod signal;
pub mod torch;
pub mod train;
pub mod weights;
