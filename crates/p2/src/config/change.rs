//! What differs between the configuration of a run and the one it is continued with.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Configuration;
use crate::problem::Problem;

/// A key with its value before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key, such as `optim.lr`.
    pub key: String,
    /// The value of the run so far.
    pub old: String,
    /// The value from now on.
    pub new: String,
}

/// All differences, by whether a run may change them on its way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Differences that take effect.
    pub allowed: Vec<Change>,
    /// Differences that would make it another run.
    pub refused: Vec<Change>,
    changeable: &'static [&'static str],
}

/// What may change when a run is continued (they touch neither the data, nor the network, nor a draw).
/// Images may lie elsewhere if they are the same, which their fingerprint tells.
pub(super) const CHANGEABLE: [&str; 11] = [
    "data.path",
    "loss.weighting",
    "optim.lr",
    "train.recompute",
    "train.total_images",
    "train.log_every",
    "train.held_out_every",
    "train.sample_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
];

/// The same of a classifier's run.
pub(super) const CHANGEABLE_OF_CLASSIFIER: [&str; 9] = [
    "data.path",
    "optim.lr",
    "train.recompute",
    "train.total_images",
    "train.log_every",
    "train.held_out_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
];

/// Compares two configurations key by key.
///
/// # Errors
/// If one of them cannot be written, which a checked one always can.
pub fn changes<C: Configuration>(old: &C, new: &C) -> anyhow::Result<Changes> {
    let (old, new) = (keys(old)?, keys(new)?);
    let mut changes = Changes {
        changeable: C::CHANGEABLE,
        ..Changes::default()
    };
    for ((key, old), (_, new)) in old.into_iter().zip(new).filter(|(old, new)| old.1 != new.1) {
        let list = if C::CHANGEABLE.contains(&key.as_str()) {
            &mut changes.allowed
        } else {
            &mut changes.refused
        };
        list.push(Change {
            key,
            old: old.to_string(),
            new: new.to_string(),
        });
    }
    Ok(changes)
}

/// All `section.key` pairs; a nested table such as `loss.weighting` counts as one value.
fn keys(config: &impl Configuration) -> anyhow::Result<Vec<(String, Value)>> {
    let value = serde_json::to_value(config).context("cannot write the configuration")?;
    let sections = value.as_object().context("a configuration is a table")?;
    let keys = sections.iter().flat_map(|(section, keys)| {
        let keys = keys.as_object().into_iter().flatten();
        keys.map(move |(key, value)| (format!("{section}.{key}"), value.clone()))
    });
    Ok(keys.collect())
}

impl Changes {
    /// The allowed changes, if there are no others.
    ///
    /// # Errors
    /// Names the first key that must not change, with both values.
    pub fn into_allowed(self) -> Result<Vec<Change>, Problem> {
        let Some(Change { key, old, new }) = self.refused.first() else {
            return Ok(self.allowed);
        };
        let message = format!(
            "a run cannot be continued with another `{key}`: it has {old}, now given {new}"
        );
        Err(Problem::new(message)
            .because(format!(
                "only these may change on the way: {}",
                self.changeable.join(", ")
            ))
            .hint("give the old value, or start another run with --out DIR"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Base, Override, Run, RunConfig, TEST_CONFIG, resolve};

    fn emoji(assignments: &[&str]) -> RunConfig {
        let overrides: Vec<_> = assignments.iter().map(|text| Override::set(text)).collect();
        let run: Run = resolve(&Base::File(TEST_CONFIG.into()), &overrides).unwrap();
        run.config().clone()
    }

    fn check(assignments: &[&str], allowed: &[&str], refused: &[&str]) {
        let changes = changes(&emoji(&[]), &emoji(assignments)).unwrap();
        let keys = |changes: &[Change]| changes.iter().map(|c| c.key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&changes.allowed), allowed, "{assignments:?}");
        assert_eq!(keys(&changes.refused), refused, "{assignments:?}");
    }

    #[test]
    fn changes_are_sorted_into_allowed_and_refused() {
        check(&[], &[], &[]);
        check(&["loss.weighting.gamma=0.5"], &["loss.weighting"], &[]);
        check(
            &["loss.weighting={kind=\"simple\"}"],
            &["loss.weighting"],
            &[],
        );
        check(
            &["optim.lr=1e-4", "train.total_images=3M"],
            &["optim.lr", "train.total_images"],
            &[],
        );
        for key in [
            "log_every",
            "held_out_every",
            "sample_every",
            "checkpoint_every",
            "keep_last",
            "keep_every",
        ] {
            check(
                &[&format!("train.{key}=96")],
                &[&format!("train.{key}")],
                &[],
            );
        }
        check(&["data.path=elsewhere"], &["data.path"], &[]);
        check(&["data.held_out=0.2"], &[], &["data.held_out"]);
        check(&["model.heads={count=2}"], &[], &["model.heads"]);
        check(
            &["train.seed=1", "optim.lr=1e-4"],
            &["optim.lr"],
            &["train.seed"],
        );
        check(&["train.batch_size=64"], &[], &["train.batch_size"]);
        check(&["optim.beta1=0.8"], &[], &["optim.beta1"]);
    }

    #[test]
    fn a_refusal_names_the_key_with_both_values() {
        let refusal = changes(&emoji(&[]), &emoji(&["model.channels=96"]))
            .unwrap()
            .into_allowed()
            .unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "a run cannot be continued with another `model.channels`: it has 64, now given 96"
        );
    }

    #[test]
    fn every_changeable_key_exists() {
        let keys = keys(&emoji(&[])).unwrap();
        for changeable in CHANGEABLE {
            assert!(
                keys.iter().any(|(key, _)| key == changeable),
                "{changeable}"
            );
        }
    }
}
