//! Every value of every option trains, and makes a difference where it should.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::project::{Project, stderr};

/// The records of two steps with these values, in which every number is finite.
#[track_caller]
fn two_steps(project: &Project, out: &str, assignments: &[&str]) -> Vec<Map<String, Value>> {
    let mut more = vec![
        "--max-steps",
        "2",
        "--threads",
        "1",
        "--set",
        "train.log_every=6",
    ];
    more.extend(
        assignments
            .iter()
            .flat_map(|assignment| ["--set", assignment]),
    );
    project.finish(out, &more);
    let records = project.metrics(out);
    assert_eq!(records.len(), 2, "{assignments:?}");
    for record in &records {
        // JSON has no NaN and no infinity: they would be null.
        assert!(
            record.values().all(Value::is_number),
            "{assignments:?}: {record:?}"
        );
        for name in ["optim/grad_norm", "loss/mse_eps"] {
            assert!(
                record[name].as_f64() > Some(0.0),
                "{assignments:?}: {record:?}"
            );
        }
    }
    records
}

#[test]
fn every_objective_trains_and_is_like_no_other() {
    let project = Project::new();
    let mut seen = BTreeMap::new();
    for prediction in ["eps", "x0", "v", "x-prev"] {
        for variance in ["fixed-small", "fixed-large", "learned-range", "learned"] {
            for weighting in ["simple", "p2", "p2-raw"] {
                let constants = if weighting == "simple" {
                    ""
                } else {
                    ",k=1.0,gamma=0.5"
                };
                let name = format!("{prediction} {variance} {weighting}");
                let records = two_steps(
                    &project,
                    &name,
                    &[
                        &format!("diffusion.prediction={prediction}"),
                        &format!("diffusion.variance={variance}"),
                        &format!("loss.weighting={{kind=\"{weighting}\"{constants}}}"),
                    ],
                );
                seen.insert(name, records[1]["loss/weighted"].clone());
            }
        }
    }
    // Fixed variances matter to sampling alone, and for eps the two kinds of P2 are the same.
    for (name, loss) in &seen {
        for (other, other_loss) in seen.range(name.clone()..).skip(1) {
            let is_same = objective(name) == objective(other);
            assert_eq!(loss == other_loss, is_same, "{name}, {other}");
        }
    }
}

#[test]
fn every_schedule_trains_and_is_like_no_other() {
    let project = Project::new();
    let mut seen = BTreeMap::new();
    for schedule in [
        "\"linear\"",
        "\"cosine\"",
        "{sigmoid={start=-3.0,end=3.0,temperature=1.0}}",
        "{karras={sigma_min=0.002,sigma_max=80.0,rho=7.0}}",
        "{log-normal={mean=-1.2,std=1.2}}",
        "{shifted={of=\"cosine\",log_snr=1.4}}",
        "{zero-terminal-snr={of=\"linear\"}}",
        "{zero-terminal-snr={of={shifted={of=\"cosine\",log_snr=-1.0}}}}",
    ] {
        let name = format!("schedule {}", seen.len());
        let assignments = [
            &format!("diffusion.schedule={schedule}") as &str,
            "diffusion.prediction=v",
        ];
        let records = two_steps(&project, &name, &assignments);
        seen.insert(records[1]["loss/weighted"].to_string(), schedule);
    }
    assert_eq!(seen.len(), 8, "{seen:?}");
}

/// Between timesteps there are levels of their own, for every prediction.
#[test]
fn continuous_time_trains_between_timesteps() {
    let project = Project::new();
    let planned = "train.loss:3=nan";
    let mut seen = Vec::new();
    for prediction in ["eps", "x0", "v"] {
        for time in ["discrete", "continuous"] {
            let name = format!("{prediction}-{time}");
            let (prediction, time) = (
                format!("diffusion.prediction={prediction}"),
                format!("diffusion.time={time}"),
            );
            let assignments = [&*prediction, &*time, "diffusion.variance=fixed-small"];
            let records = two_steps(&project, &name, &assignments);
            seen.push(records[1]["loss/weighted"].to_string());
            let set = assignments.iter().flat_map(|each| ["--set", each]);
            let more: Vec<&str> = set.collect();
            let output = project.train_until(planned, &format!("{name}-nan"), &more);
            let said = stderr(&output);
            let (_, t) = said.split_once("at t = ").unwrap();
            let (t, _) = t.split_once(' ').unwrap();
            assert_eq!(t.contains('.'), name.ends_with("continuous"), "{t}");
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 6);
}

/// What the loss of a combination depends on.
fn objective(name: &str) -> String {
    let name = name.replace("fixed-large", "fixed-small");
    if name.starts_with("eps ") {
        name.replace("p2-raw", "p2")
    } else {
        name
    }
}

#[test]
fn every_network_and_optimizer_trains_and_is_like_no_other() {
    let project = Project::new();
    // A warm-up would hide how the learning rate decays.
    let plain = two_steps(&project, "plain", &["optim.warmup_images=0"]);
    for (i, assignment) in [
        "model.resample=conv",
        "model.time_conditioning=additive",
        "model.heads={count=1}",
        "model.attention_order=new",
        "model.attention_resolutions=[8,4]",
        "model.n_res_blocks=2",
        "model.channel_mult=[1,2,2]",
        "model.dropout=0.0",
        "model.n_classes=0 model.label_dropout=0",
        "model.label_dropout=0.9",
        "data.crop=center",
        "data.horizontal_flip=false",
        "loss.density={log-normal={mean=-1.2,std=1.2}}",
        "loss.density={logit-normal={mean=0.0,std=1.0}}",
        "loss.density={laplace={mean=0.0,scale=0.5}}",
        "loss.density={speed={n_first=700,ratio=5.0}}",
        "loss.density={flow-mode={scale=1.29}}",
        "loss.density=flow-cosmap",
        "loss.strata=4",
        "loss.antithetic=true",
        "optim.decay=linear",
        "optim.decay=none",
        "optim.max_grad_norm=0",
        "optim.weight_decay=0",
        "optim.warmup_images=24",
    ]
    .into_iter()
    .enumerate()
    {
        let more = assignment.split(' ');
        let set: Vec<&str> = ["optim.warmup_images=0"].into_iter().chain(more).collect();
        let records = two_steps(&project, &format!("run-{i}"), &set);
        // A new network answers 0, so that its kind shows in the gradients of the second step.
        assert_ne!(records[1], plain[1], "{assignment}");
    }
}
