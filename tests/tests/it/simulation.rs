//! Clusters that live through what a seed has for them.

use tests::simulation::{Mutation, run};

#[test]
fn whatever_happens_every_job_ends_once_with_its_image() {
    for seed in 0..300 {
        run(seed, Mutation::None).unwrap_or_else(|failure| panic!("{failure}"));
    }
}
