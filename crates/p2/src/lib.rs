//! p2 trains and samples image diffusion models with perception-prioritized (P2) loss weighting.

pub mod config;
pub mod data;
pub mod rng;
