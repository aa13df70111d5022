//! The allowed sizes of a network.

use super::{Violation, because, ensure, is_size};
use crate::config::section::{Classifier, Heads, Model};

/// Beyond these a typing error is likelier than a wish, and products could overflow.
const MAX_LEVEL_CHANNELS: usize = 65_536;
const MAX_RES_BLOCKS: usize = 64;
const MAX_CLASSES: usize = 1_000_000;

/// Checks the sizes and options of a network.
pub(super) fn check(model: &Model, image_size: usize) -> Result<(), Violation> {
    let channels = model.channels;
    ensure(
        channels > 0 && channels.is_multiple_of(32) && channels <= MAX_LEVEL_CHANNELS,
        "model.channels",
        channels,
        format!("a multiple of 32, at most {MAX_LEVEL_CHANNELS}"),
    )
    .map_err(because("each norm has 32 groups of channels"))?;
    let level_channels = check_levels(model, image_size)?;
    ensure(
        (1..=MAX_RES_BLOCKS).contains(&model.n_res_blocks),
        "model.n_res_blocks",
        model.n_res_blocks,
        format!("1 to {MAX_RES_BLOCKS}"),
    )?;
    check_attention(model, image_size, &level_channels)?;
    ensure(
        (0.0..1.0).contains(&model.dropout),
        "model.dropout",
        model.dropout,
        "0 up to but not 1",
    )?;
    ensure(
        model.n_classes <= MAX_CLASSES,
        "model.n_classes",
        model.n_classes,
        format!("0 (no classes) to {MAX_CLASSES}"),
    )?;
    ensure(
        (0.0..1.0).contains(&model.label_dropout),
        "model.label_dropout",
        model.label_dropout,
        "0 up to but not 1",
    )?;
    ensure(
        model.label_dropout == 0.0 || model.n_classes > 0,
        "model.label_dropout",
        model.label_dropout,
        "0 for a model without classes",
    )?;
    check_low_res(model, image_size)
}

/// Checks the sizes and options of a classifier.
pub(super) fn check_classifier(model: &Classifier, image_size: usize) -> Result<(), Violation> {
    check(&model.to_unet(), image_size)?;
    ensure(
        (2..=MAX_CLASSES).contains(&model.n_classes),
        "model.n_classes",
        model.n_classes,
        format!("2 to {MAX_CLASSES}"),
    )
}

fn check_low_res(model: &Model, image_size: usize) -> Result<(), Violation> {
    ensure(
        model.low_res_size < image_size,
        "model.low_res_size",
        model.low_res_size,
        format!("0 (no super-resolution) up to but not {image_size}, the `data.image_size`"),
    )?;
    ensure(
        is_size(model.low_res_noise) && (model.low_res_size > 0 || model.low_res_noise == 0.0),
        "model.low_res_noise",
        model.low_res_noise,
        "0 or more, finite; 0 without a `model.low_res_size`",
    )
}

/// Checks the levels and returns their channels.
fn check_levels(model: &Model, image_size: usize) -> Result<Vec<usize>, Violation> {
    let mult = &model.channel_mult;
    let level_channels: Option<Vec<usize>> = mult
        .iter()
        .map(|mult| {
            model
                .channels
                .checked_mul(*mult)
                .filter(|c| (1..=MAX_LEVEL_CHANNELS).contains(c))
        })
        .collect();
    let allowed = format!(
        "one or more numbers above 0; times {} at most {MAX_LEVEL_CHANNELS}",
        model.channels
    );
    let level_channels = level_channels
        .filter(|channels| !channels.is_empty())
        .ok_or_else(|| Violation {
            key: "model.channel_mult",
            value: list(mult),
            allowed,
            because: None,
        })?;
    let n_halvings = level_channels.len() - 1;
    let divides = u32::try_from(n_halvings)
        .ok()
        .and_then(|n| 1usize.checked_shl(n))
        .is_some_and(|factor| image_size.is_multiple_of(factor));
    ensure(
        divides,
        "data.image_size",
        image_size,
        format!(
            "a multiple of 2^{n_halvings} with the {} levels of `model.channel_mult`",
            mult.len()
        ),
    )
    .map_err(because("each level halves the feature maps"))?;
    Ok(level_channels)
}

fn check_attention(
    model: &Model,
    image_size: usize,
    level_channels: &[usize],
) -> Result<(), Violation> {
    let sizes: Vec<usize> = (0..level_channels.len())
        .map(|level| image_size >> level)
        .collect();
    let wanted = &model.attention_resolutions;
    let is_subset = wanted.iter().all(|resolution| sizes.contains(resolution));
    let is_set = wanted
        .iter()
        .enumerate()
        .all(|(i, resolution)| !wanted[..i].contains(resolution));
    ensure(
        is_subset && is_set,
        "model.attention_resolutions",
        list(wanted),
        format!(
            "each at most once, out of the feature map sizes {}",
            list(&sizes)
        ),
    )?;
    let (key, number) = match model.heads {
        Heads::Channels(channels) => ("model.heads.channels", channels),
        Heads::Count(count) => ("model.heads.count", count),
    };
    // The middle of the network, at the coarsest level, always has attention.
    let coarsest = level_channels.len() - 1;
    let attended = sizes
        .iter()
        .zip(level_channels)
        .enumerate()
        .filter(|(level, (size, _))| *level == coarsest || wanted.contains(size))
        .map(|(_, (_, channels))| *channels);
    for channels in attended {
        let divides = number > 0 && channels.is_multiple_of(number);
        ensure(
            divides,
            key,
            number,
            format!("a divisor of the {channels} channels of a level with attention"),
        )?;
    }
    Ok(())
}

fn list(values: &[usize]) -> String {
    let texts: Vec<_> = values.iter().map(ToString::to_string).collect();
    format!("[{}]", texts.join(", "))
}
