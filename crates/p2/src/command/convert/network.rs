//! Which network the weights of a PyTorch file are of: as they are told, or as names and shapes say.

use std::collections::BTreeSet;

use p2_nn::Params;

use super::cpu;
use crate::cli::ConvertArgs;
use crate::config::section::Model as Network;
use crate::config::{Base, Override, Run, resolve};
use crate::model::Model;
use crate::model::file::{least_parameters, load};
use crate::model::infer::{Architecture, Assignment, Shapes, infer};
use crate::print::Printer;
use crate::problem::Problem;
use crate::torch::TorchFile;

/// What is not in weights, and does not change what they are: training and drawing.
const REST: &str = "paper-256";
/// Every network of the reference has it.
const FIRST: &str = "time_embed.0.weight";

/// The weights in a PyTorch file, and what the user says of them.
pub(super) struct Weights<'a> {
    file: TorchFile,
    /// What stands before each name in the file.
    prefix: String,
    shapes: Shapes,
    arguments: &'a ConvertArgs,
}

impl<'a> Weights<'a> {
    /// The weights at the place that the user gives.
    pub(super) fn of(file: TorchFile, arguments: &'a ConvertArgs) -> Self {
        let prefix = arguments.key.as_ref();
        let prefix = prefix.map_or_else(String::new, |key| format!("{key}."));
        let here = |(name, tensor): (&String, &crate::torch::TorchTensor)| {
            Some((name.strip_prefix(&prefix)?.to_owned(), tensor.shape.clone()))
        };
        Self {
            shapes: file.tensors().iter().filter_map(here).collect(),
            file,
            prefix,
            arguments,
        }
    }

    /// Whether they are of a classifier: an encoder without a decoder.
    pub(super) fn are_of_a_classifier(&self) -> bool {
        let has = |prefix: &str| self.shapes.keys().any(|name| name.starts_with(prefix));
        let parts = ["input_blocks.", "middle_block.", "out."];
        parts.into_iter().all(has) && !has("output_blocks.")
    }

    /// Sets parameters to the values of their names.
    pub(super) fn fill(&mut self, params: &Params) -> anyhow::Result<()> {
        for param in params.iter() {
            let values = self
                .file
                .values(&format!("{}{}", self.prefix, param.name()))?;
            param.set_values(&param.from_reference(&values)?)?;
        }
        Ok(())
    }

    /// The configuration of the weights.
    pub(super) fn configuration(&self, printer: &Printer) -> anyhow::Result<Run> {
        match given(self.arguments)? {
            Some(run) => Ok(run),
            None => self.inferred(printer),
        }
    }

    /// What names and shapes say, completed by what the user sets.
    fn inferred(&self, printer: &Printer) -> anyhow::Result<Run> {
        let found = infer(&self.shapes).map_err(|problem| self.or_deeper(problem))?;
        let given = self.arguments.overrides();
        let mut open = found.left_open();
        open.retain(|each| !given.iter().any(|set| set.is_of(each.key)));
        if !open.is_empty() {
            return Err(missing(&found, &open).into());
        }
        let base = Base::Preset(REST.to_owned());
        let with = |more: &[Assignment]| {
            let all = found.assignments().into_iter().chain(more.iter().cloned());
            let weights = all.map(|each| Override::text("weights", each.key, &each.value));
            resolve(
                &base,
                &weights.chain(given.iter().cloned()).collect::<Vec<_>>(),
            )
        };
        // These two depend on what the user sets: image size, and whether images are without class.
        let no_attention = Assignment::new("model.attention_resolutions", "[]");
        let first = with(&[no_attention, found.n_classes(0.0)])?;
        let rest = [
            found.attention_resolutions(first.data.image_size),
            found.n_classes(first.model.label_dropout),
        ];
        let run = with(&rest)?;
        self.check_room_for(&run.model)?;
        let values = found.assignments().into_iter().chain(rest);
        printer.note(format_args!("in the weights: {}", listed(values)));
        printer.note(format_args!(
            "not in the weights, so as in the preset {REST} where it is not set: dropout, loss, training, drawing"
        ));
        Ok(run)
    }

    /// Refuses a network larger than the file before memory is taken for it.
    pub(super) fn check_room_for(&self, network: &Network) -> Result<(), Problem> {
        // A number has two bytes at least.
        let (n_least, n_most) = (
            least_parameters(network),
            u128::from(self.file.n_bytes() / 2),
        );
        if n_least <= n_most {
            return Ok(());
        }
        let message =
            format!("the network has more than {n_least} numbers, the file at most {n_most}");
        Err(Problem::new(message))
    }

    /// Every tensor has its place, and every place its tensor.
    pub(super) fn check(&self, model: &Model, run: &Run) -> Result<(), Problem> {
        match self.mismatch(model.params()) {
            None => Ok(()),
            Some(message) => Err(self.unlike(message, run)),
        }
    }

    /// The first tensor that has no place in a network, or the first place without its tensor.
    pub(super) fn mismatch(&self, params: &Params) -> Option<String> {
        let names: BTreeSet<&str> = params.iter().map(p2_nn::params::Param::name).collect();
        let at = |name: &str| format!("`{}{name}`", self.prefix);
        let unknown = self
            .shapes
            .keys()
            .find(|name| !names.contains(name.as_str()));
        if let Some(unknown) = unknown {
            return Some(format!("the network has no {}", at(unknown)));
        }
        for param in params.iter() {
            let (name, expected) = (param.name(), param.reference_shape());
            let message = match self.shapes.get(name) {
                Some(found) if *found == expected => continue,
                Some(found) => format!(
                    "{} has shape {found:?}, the network needs {expected:?}",
                    at(name)
                ),
                None => format!("the file has no {}", at(name)),
            };
            return Some(message);
        }
        None
    }

    /// An error about weights of another network, with what differs.
    fn unlike(&self, message: String, run: &Run) -> Problem {
        let problem = Problem::new(message);
        let found = match infer(&self.shapes) {
            Ok(found) => found.differences(run),
            Err(other) => return self.or_deeper(problem.caused_by(other)),
        };
        if found.is_empty() {
            return problem
                .because("the weights are of another network than the configuration says");
        }
        let differences = found
            .iter()
            .map(|each| format!("{}, not {}", each.needed, each.has));
        let problem = problem.because(format!(
            "the weights need {}",
            differences.collect::<Vec<_>>().join("; ")
        ));
        match &self.arguments.like {
            Some(path) => problem.hint(format!(
                "{} is another network: take another --like, or --preset",
                path.display()
            )),
            None => problem.hint(format!(
                "add{}",
                flags(found.iter().map(|each| &each.needed))
            )),
        }
    }

    /// The same with the way to weights that lie deeper, if there are some.
    fn or_deeper(&self, problem: Problem) -> Problem {
        let names = self.file.tensors().keys();
        let places = names.filter_map(|name| name.strip_suffix(&format!(".{FIRST}")));
        let keys: Vec<_> = places.map(|place| format!("--key {place}")).collect();
        match self.shapes.contains_key(FIRST) || keys.is_empty() {
            true => problem
                .hint("it must be the state dictionary of an ADM U-Net, by the reference's names"),
            false => problem.hint(format!("the weights lie deeper: add {}", keys.join(" or "))),
        }
    }
}

/// The configuration that the user names, if one is named.
pub(super) fn given(arguments: &ConvertArgs) -> anyhow::Result<Option<Run>> {
    if let Some(path) = &arguments.like {
        return Ok(Some(load(path, cpu())?.run));
    }
    let base = arguments.base();
    Ok(base
        .map(|base| resolve(&base, &arguments.overrides()))
        .transpose()?)
}

/// What must be set before the weights are a model.
fn missing(found: &Architecture, open: &[Assignment]) -> Problem {
    let message = "the weights do not say all of what they are";
    let lines: String = open
        .iter()
        .map(|each| format!("\n  --set {each}"))
        .collect();
    Problem::new(message)
        .because(format!(
            "names and shapes say {}, with attention at the levels {:?}, and no more",
            listed(found.assignments()),
            found.attention_levels
        ))
        .hint(format!(
            "add what is missing, or --preset NAME or --like MODEL that has it all:{lines}"
        ))
}

fn listed(values: impl IntoIterator<Item = Assignment>) -> String {
    let texts: Vec<_> = values.into_iter().map(|each| each.to_string()).collect();
    texts.join(", ")
}

/// As one types them: a shell has its own use for brackets.
fn flags<'a>(values: impl Iterator<Item = &'a Assignment>) -> String {
    let flag = |each: &Assignment| match each.value.starts_with('[') {
        true => format!(" --set '{each}'"),
        false => format!(" --set {each}"),
    };
    values.map(flag).collect()
}
