//! Smallest and middle values of the rounds.

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
