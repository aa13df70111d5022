//! Holds the crate to published numbers, closed forms and finite differences; runs in seconds, offline.

mod bounds; // the terms of the variational bound, by their definition
mod classifier; // guidance whose result is known
mod densities; // how often timesteps are drawn
mod errors; // what is refused, and the words
mod family; // weightings in every unit, and what they minimize
mod goldens; // numbers printed by the reference code
mod gradients; // finite differences, the chain rule, cut gradients
mod independence; // bits do not depend on the batch
mod likelihoods; // densities under the probability flow, derivatives of guesses
mod mistakes; // of other trainers, which are not made
mod numbers; // numbers of the paper's schedules and weights
mod samplers; // closed forms on Gaussian data
mod schedules; // schedules given by their log-SNR
mod solvers; // samplers along a course of noise
mod stateful; // weightings and densities that learn
mod support; // inputs and comparisons
mod weights; // targets, exchange rates, weightings
