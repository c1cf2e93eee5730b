//! Smallest, middle and other values of what was measured.

/// The smallest value, if there is one.
pub(crate) fn minimum(values: &[f64]) -> Option<f64> {
    values.iter().copied().reduce(f64::min)
}

/// The middle value, or the mean of both middle ones.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => None,
        (len, middle) if len % 2 == 1 => Some(sorted[middle]),
        (_, middle) => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The smallest value that at least this share of `sorted` does not exceed (nearest rank).
pub(crate) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// In ascending order.
pub(crate) fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_nothing_has_none() {
        assert_eq!((median(&[]), minimum(&[])), (None, None));
        assert_eq!((median(&[9.0, 1.0, 2.0]), minimum(&[9.0, 1.0, 2.0])), (Some(2.0), Some(1.0)));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }
}
