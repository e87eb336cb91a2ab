//! Pairs of blocks in the order A B B A, their ratios, and how sure the median is.

use crate::block::{self, Work};
use crate::rivals::Rival;
use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// A pair is dropped if the machine's own speed moved by more than this inside it.
const DRIFT_MAX: f64 = 0.10;

#[derive(Debug)]
pub(crate) struct Comparison {
    /// Medians per unit of work.
    pub(crate) ours: f64,
    pub(crate) theirs: f64,
    /// Ours over theirs, pair by pair.
    pub(crate) ratios: Vec<f64>,
    pub(crate) median: f64,
    /// 95 % bootstrap interval of the median.
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Spread of the calibration unit over the whole comparison.
    pub(crate) drift: f64,
}

pub(crate) fn compare(pairs: u32, ours: &Rival, theirs: &Rival, work: &Work) -> Result<Comparison> {
    // One block each that does not count: caches, pools, routes touched.
    block::run(ours, work)?;
    block::run(theirs, work)?;
    let (mut a, mut b, mut ratios, mut units) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pair in 0..pairs {
        let before = block::calibrate()?;
        let (x, y) = if pair % 2 == 0 {
            let x = block::run(ours, work)?;
            (x, block::run(theirs, work)?)
        } else {
            let y = block::run(theirs, work)?;
            (block::run(ours, work)?, y)
        };
        let after = block::calibrate()?;
        units.extend([before, after]);
        if (after / before - 1.0).abs() <= DRIFT_MAX {
            a.push(x);
            b.push(y);
            ratios.push(x / y);
        }
    }
    let fastest = units.iter().copied().fold(f64::INFINITY, f64::min);
    let slowest = units.iter().copied().fold(0.0, f64::max);
    let (low, high) = interval(&ratios);
    Ok(Comparison {
        ours: median(&a),
        theirs: median(&b),
        median: median(&ratios),
        low,
        high,
        ratios,
        drift: slowest / fastest - 1.0,
    })
}

pub(crate) fn median(values: &[f64]) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// Percentile bootstrap of the median, 2,000 draws from a fixed seed.
fn interval(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let mut chance = StdRng::seed_from_u64(23);
    let mut medians: Vec<f64> = (0..2_000)
        .map(|_| {
            let draw: Vec<f64> =
                values.iter().map(|_| values[chance.random_range(0..values.len())]).collect();
            median(&draw)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (medians[50], medians[1_949])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn an_interval_holds_its_median_and_stays_in_range() {
        let values = [0.8, 0.9, 1.0, 1.1, 1.2, 0.95, 1.05];
        let (low, high) = interval(&values);
        assert!((0.8..=1.0).contains(&low) && (1.0..=1.2).contains(&high), "{low} {high}");
    }
}
