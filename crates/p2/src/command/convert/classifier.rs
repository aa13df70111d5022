//! The weights of classifiers: as the user says what they are.

use super::cpu;
use super::network::Weights;
use crate::classifier::Classifier;
use crate::classifier::file::{load, save};
use crate::cli::ConvertArgs;
use crate::config::{Base, CLASSIFIER_PRESETS, ClassifierRun};
use crate::print::Printer;
use crate::problem::Problem;

/// Weights of a PyTorch file as a classifier.
pub(super) fn from_torch(
    weights: &mut Weights<'_>,
    arguments: &ConvertArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let run = given(arguments)?.ok_or_else(|| {
        Problem::new("these are the weights of a classifier: they have an encoder alone")
            .because("heads, image size and noise schedule stand nowhere in them")
            .hint("say what they are with --preset classifier-64, with --set for what differs, or --like CLASSIFIER")
    })?;
    weights.check_room_for(&run.model.to_unet())?;
    let classifier = Classifier::zeros(&run, cpu())?;
    if let Some(message) = weights.mismatch(classifier.params()) {
        return Err(Problem::new(message)
            .because("the weights are of another classifier than the configuration says")
            .hint("set what differs with --set; model.pool and model.n_classes are in the names and shapes of `out`")
            .into());
    }
    weights.fill(classifier.params())?;
    save(&arguments.output, &classifier, &run)?;
    let params = classifier.params();
    printer.note(format_args!(
        "{} numbers in {} tensors",
        params.n_elements(),
        params.len()
    ));
    Ok(())
}

/// The configuration of the classifier that the user names, if one is named.
pub(super) fn given(arguments: &ConvertArgs) -> anyhow::Result<Option<ClassifierRun>> {
    if let Some(path) = &arguments.like {
        return Ok(Some(load(path, cpu())?.run));
    }
    let base = arguments.base();
    let is_known = |base: &Base| match base {
        Base::Preset(name) => CLASSIFIER_PRESETS.iter().any(|preset| preset.name == name),
        Base::File(_) => false,
    };
    let run = base
        .filter(is_known)
        .map(|base| ClassifierRun::resolve(&base, &arguments.overrides()));
    Ok(run.transpose()?)
}
