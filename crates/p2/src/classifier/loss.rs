//! How well scores fit the classes of images.

use anyhow::ensure;
use candle_core::{D, Tensor};

/// `-log p(label)` by the softmax of scores, in nats: `[N, n_classes]` and `[N]` to `[N]`.
pub(crate) fn cross_entropy(scores: &Tensor, labels: &[u32]) -> anyhow::Result<Tensor> {
    let (n, n_classes) = scores.dims2()?;
    let is_known = labels.iter().all(|&label| (label as usize) < n_classes);
    ensure!(
        n == labels.len() && is_known,
        "labels {labels:?} for {n} images and {n_classes} classes"
    );
    // The largest score is a constant that keeps the exponentials finite.
    let largest = scores.max_keepdim(D::Minus1)?.detach();
    let centered = scores.broadcast_sub(&largest)?;
    let log_sum = centered.exp()?.sum(D::Minus1)?.log()?; // [N]
    let labels = Tensor::new(labels, scores.device())?.unsqueeze(1)?;
    let own = centered.gather(&labels, D::Minus1)?.squeeze(1)?; // [N]
    Ok((log_sum - own)?)
}

/// How many classes have a higher score than the right one: `[N]`.
pub(crate) fn ranks(scores: &Tensor, labels: &[u32]) -> anyhow::Result<Vec<usize>> {
    let rows = scores.to_vec2::<f32>()?;
    let ranks = rows.iter().zip(labels).map(|(scores, &label)| {
        let own = scores.get(label as usize).copied().unwrap_or(f32::NAN);
        // What is no number is better than no score.
        let is_no_better = |score: &&f32| **score <= own;
        scores.len() - scores.iter().filter(is_no_better).count()
    });
    Ok(ranks.collect())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn the_loss_is_the_log_of_the_softmax_and_so_is_its_gradient() {
        let scores = [[1.0f64, 3.0, -2.0], [800.0, 799.0, -900.0]];
        let scores = Var::new(&scores, &Device::Cpu).unwrap();
        let losses = cross_entropy(&scores, &[0, 1]).unwrap();
        let sum = (1f64.exp() + 3f64.exp() + (-2f64).exp()).ln();
        let expected = [sum - 1.0, (1.0 + 1f64.exp()).ln()];
        for (loss, expected) in losses.to_vec1::<f64>().unwrap().iter().zip(expected) {
            assert!((loss - expected).abs() < 1e-12, "{loss} is not {expected}");
        }
        let gradients = losses.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(&scores).unwrap().to_vec2::<f64>().unwrap();
        // softmax - 1 at the class
        for (class, score) in [1.0f64, 3.0, -2.0].into_iter().enumerate() {
            let expected = (score - sum).exp() - f64::from(u8::from(class == 0));
            assert!((gradient[0][class] - expected).abs() < 1e-12);
        }
        assert!(cross_entropy(&scores, &[0, 3]).is_err() && cross_entropy(&scores, &[0]).is_err());
    }

    #[test]
    fn the_best_class_has_rank_0() {
        let scores = [[0.1f32, 0.7, 0.2], [f32::NAN, 1.0, 0.0]];
        let scores = Tensor::new(&scores, &Device::Cpu).unwrap();
        assert_eq!(ranks(&scores, &[1, 1]).unwrap(), [0, 1]);
        assert_eq!(ranks(&scores, &[0, 0]).unwrap(), [2, 3]);
    }
}
