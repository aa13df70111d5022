//! How a network draws: as the user says, and for the rest as it was trained to.

use p2_diffusion::Levels;

use crate::classifier::Classifier;
use crate::cli::SampleArgs;
use crate::config::RunConfig;
use crate::config::section::{Prediction, Sampler, Spacing};
use crate::model::file::Loaded;
use crate::model::{Model, schedule};
use crate::problem::Problem;
use crate::sample::{ClassifierForm, ClassifierGuidance, Guidance, SampleOptions};

/// What the user asks for, and for the rest what the model was trained to show.
pub(super) fn options<'a>(
    arguments: &'a SampleArgs,
    config: &RunConfig,
) -> Result<SampleOptions<'a>, Problem> {
    let sampler = arguments.sampler.unwrap_or(config.sample.sampler);
    let spacing = match (arguments.spacing, config.sample.spacing) {
        (Some(spacing), _) => spacing,
        // The model's own sampler goes between timesteps, the one asked for cannot.
        (None, Spacing::Karras) if sampler.is_discrete() => Spacing::Even,
        (None, spacing) => spacing,
    };
    // Nor does another sampler want the fresh noise of the model's own.
    let eta = if sampler == config.sample.sampler {
        config.sample.eta
    } else {
        sampler.usual_eta()
    };
    let (spacing, steps) = match &arguments.respacing {
        Some(spec) => (Spacing::Even, Some(n_levels(spec, config)?)),
        None => (spacing, arguments.steps.map(std::num::NonZero::get)),
    };
    let options = SampleOptions {
        sampler,
        n_steps: steps.unwrap_or(config.sample.n_steps),
        spacing,
        respacing: arguments.respacing.as_deref(),
        eta: arguments.eta.unwrap_or(eta),
        seed: arguments.seed,
        guidance: Guidance::of_scale(1.0),
        classifier: None,
    };
    check_steps(options.n_steps, config)?;
    if !options.sampler.has_eta() && arguments.eta.is_some() {
        return Err(
            Problem::new(format!("{} has no eta", options.sampler.name()))
                .hint("leave --eta away, or use --sampler ddim"),
        );
    }
    check_levels(&options, config.diffusion.prediction)?;
    Ok(options)
}

/// The number of levels that a name selects.
fn n_levels(spec: &str, config: &RunConfig) -> Result<usize, Problem> {
    let levels =
        schedule(&config.diffusion).and_then(|training| Levels::from_spec(&training, spec));
    let levels = levels.map_err(|error| {
        Problem::new(format!("--respacing {spec:?} selects no noise levels"))
            .caused_by(error)
            .hint("give steps (250), steps of equal sections (10,15,25), ddim50, leading50 or trailing50")
    })?;
    Ok(levels.n_steps())
}

/// Refuses more steps than there are noise levels.
pub(in crate::command) fn check_steps(n_steps: usize, config: &RunConfig) -> Result<(), Problem> {
    let n_timesteps = config.diffusion.n_timesteps;
    if n_steps <= n_timesteps {
        return Ok(());
    }
    let message = format!("{n_steps} steps, but the model knows {n_timesteps} noise levels");
    Err(Problem::new(message).hint(format!("use --steps from 1 to {n_timesteps}")))
}

/// Refuses noise levels between timesteps where there are none: for the sampler, or for what the model predicts.
fn check_levels(options: &SampleOptions<'_>, prediction: Prediction) -> Result<(), Problem> {
    let (sampler, spacing) = (options.sampler, options.spacing);
    if sampler.is_discrete() && spacing == Spacing::Karras {
        let message = format!("{} goes from timestep to timestep", sampler.name());
        return Err(Problem::new(message)
            .because("karras spacing has levels between them")
            .hint("use --sampler euler, which is ddim between timesteps too"));
    }
    if prediction == Prediction::XPrev && sampler.goes_between(spacing) {
        let message = match spacing {
            Spacing::Karras => "karras spacing has noise levels between timesteps".to_owned(),
            _ => format!("{} asks for noise levels between timesteps", sampler.name()),
        };
        return Err(Problem::new(message)
            .because("the model predicts the mean of the step to the timestep before (x-prev), and knows none there")
            .hint("use --sampler ancestral or --sampler ddim, with --spacing even"));
    }
    Ok(())
}

/// How far to go away from which worse guess.
pub(super) fn guidance<'a>(
    arguments: &SampleArgs,
    loaded: &Loaded,
    guide: Option<&'a Model>,
) -> Result<Guidance<'a>, Problem> {
    let scale = arguments
        .guidance_scale
        .unwrap_or(loaded.run.sample.guidance);
    if !(scale.is_finite() && scale >= 0.0) {
        return Err(
            Problem::new(format!("--guidance-scale is {scale}")).hint("use 0 or more; 1 is none")
        );
    }
    let sigmas = match arguments.guidance_sigmas.as_deref() {
        None => [0.0, f64::INFINITY],
        Some(&[least, most]) if (0.0..most).contains(&least) => [least, most],
        Some(sigmas) => {
            return Err(Problem::new(format!("--guidance-sigmas are {sigmas:?}"))
                .hint("give the least noise first, 0 or more"));
        }
    };
    check_guide(guide, &loaded.model, scale)?;
    Ok(Guidance {
        scale,
        sigmas,
        by: guide,
    })
}

/// Refuses a guide whose guesses do not compare with the model's.
fn check_guide(guide: Option<&Model>, model: &Model, scale: f64) -> Result<(), Problem> {
    let Some(guide) = guide else {
        if scale == 1.0 || model.no_class().is_some() {
            return Ok(());
        }
        return Err(Problem::new("the model cannot guide itself")
            .because("it was not trained without classes as well")
            .hint("train with model.label_dropout = 0.1, or give another model with --guide"));
    };
    let (size, other_size) = (model.image_size(), guide.image_size());
    let (n_classes, n_others) = (model.n_classes(), guide.n_classes());
    let (message, hint) = if scale == 1.0 {
        let message = "--guide without a scale other than 1 guides nothing".to_owned();
        (message, "add --guidance-scale 2")
    } else if size != other_size {
        let message = format!("the model draws images of {size} pixels, its guide of {other_size}");
        (message, "give a guide of the same size")
    } else if guide.schedule() != model.schedule() {
        let message = "the model and its guide have different noise schedules".to_owned();
        (
            message,
            "give a guide of the same diffusion.schedule and n_timesteps",
        )
    } else if n_others > 0 && n_others != n_classes {
        let message = format!("the model knows {n_classes} classes, its guide {n_others}");
        (message, "give a guide of the same classes, or of none")
    } else {
        return Ok(());
    };
    Err(Problem::new(message).hint(hint))
}

/// How a classifier guides a network: with ancestral steps as the reference code does, else by the guess of the noise.
pub(super) fn classifier_guidance<'a>(
    arguments: &SampleArgs,
    classifier: &'a Classifier,
    sampler: Sampler,
) -> Result<ClassifierGuidance<'a>, Problem> {
    let scale = arguments.classifier_scale;
    if !(scale.is_finite() && scale >= 0.0) {
        return Err(Problem::new(format!("--classifier-scale is {scale}"))
            .hint("use 0 or more; 0 is no guidance"));
    }
    let is_ancestral = sampler == Sampler::Ancestral;
    let usual = if is_ancestral {
        ClassifierForm::Mean
    } else {
        ClassifierForm::Score
    };
    let form = arguments.classifier_form.unwrap_or(usual);
    if form != ClassifierForm::Score && !is_ancestral {
        let message = format!("{} has no mean to be moved", sampler.name());
        return Err(Problem::new(message)
            .because("only the steps of ancestral sampling have one")
            .hint("use --classifier-form score, or --sampler ancestral"));
    }
    Ok(ClassifierGuidance {
        classifier,
        scale,
        form,
    })
}
