//! Networks that draw one after the other: each enlarges what the one before it drew.

use std::ops::Range;
use std::path::Path;

use candle_core::Tensor;
use p2_nn::Cpu;

use super::options::{classifier_guidance, guidance, options};
use crate::classifier::{self, Classifier};
use crate::cli::SampleArgs;
use crate::config::section::{Crop, Data, GroupBy, SkinTones};
use crate::config::short_variance;
use crate::data::{Dataset, Split};
use crate::model::file::{Loaded, load};
use crate::model::{Condition, Model};
use crate::print::Printer;
use crate::problem::Problem;
use crate::sample::{SampleOptions, draw, labels};

/// All that is read from files before anything is drawn.
pub(super) struct Networks {
    stages: Vec<Loaded>,
    guide: Option<Loaded>,
    classifier: Option<classifier::file::Loaded>,
    /// Images that the first network enlarges, if it is no cascade that draws them.
    small: Option<Dataset>,
}

/// Networks, and how each draws.
pub(super) struct Cascade<'a> {
    /// One or more.
    stages: Vec<(&'a Model, SampleOptions<'a>)>,
    small: Option<&'a Dataset>,
    class: Option<u32>,
    /// Of those who know any; else 0.
    n_classes: usize,
}

/// What was drawn.
pub(super) struct Drawn {
    /// Of the last network, `[N, H, W, 3]` in `[-1, 1]`.
    pub(super) pixels: Tensor,
    pub(super) labels: Vec<u32>,
    /// Images that networks looked at.
    pub(super) n_evaluations: usize,
}

impl Networks {
    pub(super) fn load(
        arguments: &SampleArgs,
        cpu: Cpu,
        printer: &Printer,
    ) -> anyhow::Result<Self> {
        let load = |path: &std::path::PathBuf| load(path, cpu);
        let stages = arguments.models().map(load);
        let stages = stages.collect::<anyhow::Result<Vec<_>>>()?;
        for skipped in stages.iter().flat_map(|stage| &stage.skipped) {
            printer.warn(skipped);
        }
        let guide = arguments.guide.as_ref().map(load).transpose()?;
        let classifier = arguments.classifier.as_ref();
        let classifier = classifier.map(|path| classifier::file::load(path, cpu));
        let classifier = classifier.transpose()?;
        check_sizes(&stages, arguments)?;
        let known = classifier.as_ref().map(|loaded| &loaded.classifier);
        check_classes(&n_classes(&stages, known), arguments.class)?;
        if let Some(classifier) = known {
            check_classifier(classifier, &stages)?;
        }
        let small = match (&arguments.low_res, stages.first()) {
            (Some(path), Some(first)) => Some(small_images(path, &first.model)?),
            _ => None,
        };
        Ok(Self {
            stages,
            guide,
            classifier,
            small,
        })
    }

    /// Where the networks were found.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.stages.iter().map(|stage| stage.path.as_path())
    }

    pub(super) fn cascade<'a>(
        &'a self,
        arguments: &'a SampleArgs,
        printer: &Printer,
    ) -> anyhow::Result<Cascade<'a>> {
        let guide = self.guide.as_ref().map(|loaded| &loaded.model);
        let stages = self.stages.iter().map(|loaded| {
            let options = options(arguments, &loaded.run)?;
            let doubt = short_variance(&loaded.run.diffusion, options.sampler, options.n_steps);
            doubt.iter().for_each(|text| printer.warn(text));
            let classifier = self.classifier();
            let classifier = classifier.filter(|classifier| guides(classifier, &loaded.model));
            let classifier =
                classifier.map(|found| classifier_guidance(arguments, found, options.sampler));
            let options = SampleOptions {
                guidance: guidance(arguments, loaded, guide)?,
                classifier: classifier.transpose()?,
                ..options
            };
            Ok((&loaded.model, options))
        });
        Ok(Cascade {
            stages: stages.collect::<anyhow::Result<_>>()?,
            small: self.small.as_ref(),
            class: arguments.class,
            n_classes: n_classes(&self.stages, self.classifier())
                .into_iter()
                .max()
                .unwrap_or(0),
        })
    }

    fn classifier(&self) -> Option<&Classifier> {
        self.classifier.as_ref().map(|loaded| &loaded.classifier)
    }
}

impl Cascade<'_> {
    /// Draws images of the seed.
    pub(super) fn draw(&self, images: Range<u64>) -> anyhow::Result<Drawn> {
        let (mut drawn_before, labels) = self.given(images.clone())?;
        let mut n_evaluations = 0;
        for (model, options) in &self.stages {
            // Networks learned to enlarge pixels, which end at -1 and 1.
            let low_res = drawn_before.map(|pixels| pixels.clamp(-1.0, 1.0));
            let low_res = low_res.transpose()?;
            let condition = Condition {
                labels: &labels,
                low_res: low_res.as_ref(),
            };
            let drawn = draw(model, images.clone(), condition, options, || Ok(()))?;
            n_evaluations += drawn.n_evaluations;
            drawn_before = Some(drawn.pixels);
        }
        let pixels =
            drawn_before.ok_or_else(|| Problem::new("there is no network to draw with"))?;
        Ok(Drawn {
            pixels,
            labels,
            n_evaluations,
        })
    }

    /// What the first network enlarges, if it does, and the classes of all.
    fn given(&self, images: Range<u64>) -> anyhow::Result<(Option<Tensor>, Vec<u32>)> {
        let labels = labels(self.n_classes, images.clone(), self.class);
        let Some(small) = self.small else {
            return Ok((None, labels));
        };
        let n_small = small.n_images(Split::Training).max(1);
        let indices = images.map(|image| image as usize % n_small);
        let (low_res, own) = small.images(Split::Training, indices)?;
        let is_own = self.class.is_none() && !small.class_names().is_empty();
        let labels = if is_own { own } else { labels };
        Ok((Some(low_res), labels))
    }

    /// Height and width of what it draws.
    pub(super) fn image_size(&self) -> usize {
        self.stages
            .last()
            .map_or(0, |(model, _)| model.image_size())
    }

    /// Whether its images have classes.
    pub(super) fn has_classes(&self) -> bool {
        self.n_classes > 0
    }
}

/// Images of a folder or archive, as small as the model enlarges them.
fn small_images(path: &str, model: &Model) -> anyhow::Result<Dataset> {
    Dataset::open(&Data {
        path: path.to_owned(),
        image_size: model.low_res_size().unwrap_or(model.image_size()),
        crop: Crop::Center,
        horizontal_flip: false,
        held_out: 0.0,
        group_by: GroupBy::File,
        skin_tones: SkinTones::All,
    })
}

/// Each network must enlarge what the one before it draws, and the first one what is given, if anything is.
fn check_sizes(stages: &[Loaded], arguments: &SampleArgs) -> Result<(), Problem> {
    let Some(first) = stages.first() else {
        return Ok(());
    };
    let path = first.path.display();
    match (first.model.low_res_size(), &arguments.low_res) {
        (Some(size), None) => {
            return Err(
                Problem::new(format!("{path} enlarges images of {size}x{size} pixels"))
                    .hint("give images with --low-res PATH, or a network that draws them with --cascade BASE,MODEL"),
            );
        }
        (None, Some(_)) => {
            return Err(
                Problem::new(format!("{path} enlarges no images")).hint("leave --low-res away")
            );
        }
        _ => {}
    }
    for (before, after) in stages.iter().zip(stages.iter().skip(1)) {
        let (size, path) = (before.model.image_size(), after.path.display());
        let message = match after.model.low_res_size() {
            Some(wanted) if wanted == size => continue,
            Some(wanted) => format!("{path} enlarges images of {wanted}x{wanted} pixels"),
            None => format!("{path} draws from noise alone"),
        };
        let before = before.path.display();
        return Err(Problem::new(message)
            .because(format!("{before} before it draws {size}x{size} pixels"))
            .hint("give the networks in their order, each with the model.low_res_size of what comes before"));
    }
    Ok(())
}

/// The numbers of classes of networks that know any.
fn n_classes(stages: &[Loaded], classifier: Option<&Classifier>) -> Vec<usize> {
    let models = stages.iter().map(|stage| stage.model.n_classes());
    let all = models.chain(classifier.map(Classifier::n_classes));
    all.filter(|&n_classes| n_classes > 0).collect()
}

/// Whether a classifier knows the images of a model.
fn guides(classifier: &Classifier, model: &Model) -> bool {
    classifier.image_size() == model.image_size()
}

/// The classifier must have seen noise, and that of a network whose images it knows.
fn check_classifier(classifier: &Classifier, stages: &[Loaded]) -> Result<(), Problem> {
    let size = classifier.image_size();
    let Some(guided) = stages.iter().find(|stage| guides(classifier, &stage.model)) else {
        let message =
            format!("the classifier knows images of {size}x{size} pixels, which no model draws");
        return Err(Problem::new(message).hint("give a classifier of the model's data.image_size"));
    };
    if !classifier.is_noised() {
        let message = "the classifier was trained on clean images";
        return Err(Problem::new(message).hint("train one with diffusion.noised = true"));
    }
    if guided.model.schedule() != classifier.schedule() {
        let message = "the model and the classifier have different noise schedules";
        return Err(Problem::new(message)
            .hint("train a classifier with the model's diffusion.schedule and n_timesteps"));
    }
    Ok(())
}

/// The class must exist, and those who know classes must know the same ones.
fn check_classes(counts: &[usize], class: Option<u32>) -> Result<(), Problem> {
    let n_classes = counts.iter().copied().max().unwrap_or(0);
    if counts.iter().any(|&n| n != n_classes) {
        let message = format!("the networks know different classes: {counts:?}");
        return Err(
            Problem::new(message).hint("those with classes must have the same model.n_classes")
        );
    }
    check_class(class, n_classes)
}

/// A class that is asked for must be one of so many.
pub(in crate::command) fn check_class(class: Option<u32>, n_classes: usize) -> Result<(), Problem> {
    match class {
        Some(_) if n_classes == 0 => {
            Err(Problem::new("the model knows no classes").hint("leave --class away"))
        }
        Some(class) if class as usize >= n_classes => Err(Problem::new(format!(
            "class {class} of a model with {n_classes} classes"
        ))
        .hint(format!("use --class from 0 to {}", n_classes - 1))),
        _ => Ok(()),
    }
}
