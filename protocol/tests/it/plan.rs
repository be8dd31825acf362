//! S-3 for any plan: two branches or one, bands of any heights, naive or not.

use crate::fabric;
use proptest::collection::vec;
use proptest::prelude::*;
use protocol::job::{Decode, Parallelism};
use protocol::plan::{
    Ask, Axis, Band, Branch, Digest, Geometry, Plan, PlanError, SIDE_MAX, SiteSpec, SlotTable,
    Stage, split_evenly,
};
use std::net::SocketAddr;

const UNIT: u32 = 4;

/// Bands of these heights in units, one below the other.
fn bands(heights: &[u32]) -> Vec<Band> {
    let mut top = 0;
    let band = |units: &u32| {
        let band = Band { top, rows: units * UNIT };
        top = band.end();
        band
    };
    heights.iter().map(band).collect()
}

/// The heights of as many bands as there are cuts and one more, covering `units`.
fn heights(units: u32, cuts: &[u32]) -> Vec<u32> {
    let mut edges: Vec<u32> = cuts.iter().map(|cut| 1 + cut % (units - 1)).collect();
    edges.extend([0, units]);
    edges.sort_unstable();
    edges.dedup();
    edges.windows(2).map(|edge| edge[1] - edge[0]).collect()
}

pub(crate) fn plans() -> impl Strategy<Value = Plan> {
    let cuts = || vec(any::<u32>(), 0..6);
    let ways = prop::sample::select(Parallelism::ALL);
    (8_u32..40, any::<bool>(), cuts(), cuts(), ways).prop_map(
        |(units, split, first, second, parallelism)| {
            let (first, second) = (bands(&heights(units, &first)), bands(&heights(units, &second)));
            let parts = match split {
                true => vec![(Branch::Negative, first), (Branch::Prompt, second)],
                false => vec![(Branch::Whole, first)],
            };
            let ranks: usize = parts.iter().map(|(_, bands)| bands.len()).sum();
            let mut plan = fabric::plan(1, &vec![SocketAddr::from(([127, 0, 0, 1], 1)); ranks]);
            plan.spec.parallelism = parallelism;
            plan.spec.guidance = 5.0;
            plan.spec.decode = if units % 2 == 0 { Decode::Tiled } else { Decode::Whole };
            plan.geometry.row_unit = UNIT;
            plan.geometry.rows = units * UNIT;
            plan.geometry.columns = units * UNIT;
            let decodes = split_evenly(units * UNIT, 1, ranks).expect("enough rows");
            let bands = parts
                .into_iter()
                .flat_map(|(branch, bands)| bands.into_iter().map(move |band| (branch, band)));
            let whole = Band { top: 0, rows: units * UNIT };
            let has_bands = parallelism.has_bands();
            for ((member, (branch, band)), decodes) in
                plan.members.iter_mut().zip(bands).zip(decodes)
            {
                member.branch = branch;
                member.band = if has_bands { band } else { whole };
                member.decodes = decodes;
            }
            plan
        },
    )
}

pub(crate) fn sites() -> Vec<SiteSpec> {
    let site = |ask, stage, halvings| SiteSpec {
        path: format!("{ask:?}"),
        ask,
        stage,
        channels: 8,
        halvings,
    };
    vec![
        site(Ask::Halo { rows: 1 }, Stage::Input, 0),
        site(Ask::Halo { rows: 1 }, Stage::Denoise, 2),
        site(Ask::Moments { groups: 4 }, Stage::Denoise, 1),
        site(Ask::Gather, Stage::Denoise, 1),
        site(Ask::Prediction, Stage::Latent, 0),
        site(Ask::Strip(Axis::Rows), Stage::Latent, 0),
        site(Ask::Strip(Axis::Columns), Stage::Latent, 0),
        site(Ask::Summand, Stage::Denoise, 1),
        site(Ask::Sum, Stage::Denoise, 1),
        site(Ask::Latent, Stage::Latent, 0),
        site(Ask::Communicator, Stage::Latent, 0),
        site(Ask::Halo { rows: 1 }, Stage::Decode, -1),
        site(Ask::Gather, Stage::Decode, 0),
        site(Ask::Gather, Stage::Tiles, 0),
    ]
}

proptest! {
    #[test]
    fn s3_tables_of_every_pair_agree_and_digests_match(plan in plans()) {
        prop_assert_eq!(plan.check(), Ok(()));
        let sites = sites();
        let tables: Vec<SlotTable> =
            plan.ranks().map(|rank| SlotTable::new(&plan, &sites, rank)).collect();
        for one in plan.ranks() {
            for other in plan.ranks() {
                let posts = tables[one.index()].posts.iter().filter(|slot| slot.to == other);
                let lands =
                    tables[other.index()].lands.iter().filter(|slot| slot.slot.from == one);
                prop_assert!(posts.eq(lands), "{} and {}", one, other);
            }
        }
        let digest = Digest::new(&plan, &sites);
        prop_assert_eq!(Digest::new(&plan.clone(), &sites), digest);
        let mut moved = plan.clone();
        moved.members[0].decodes.rows += 1;
        prop_assert!(Digest::new(&moved, &sites) != digest);
        prop_assert!(moved.check().is_err());
    }

    #[test]
    fn a_latent_of_no_image_is_refused(plan in plans(), huge in SIDE_MAX / 8 + 1..) {
        let numbers: [fn(&mut Geometry) -> &mut u32; 5] = [
            |geometry| &mut geometry.rows,
            |geometry| &mut geometry.columns,
            |geometry| &mut geometry.channels,
            |geometry| &mut geometry.row_unit,
            |geometry| &mut geometry.vae_factor,
        ];
        for number in numbers {
            for wrong in [0, huge] {
                let mut plan = plan.clone();
                *number(&mut plan.geometry) = wrong;
                let refused = matches!(plan.check(), Err(PlanError::Geometry { .. }));
                prop_assert!(refused, "{:?}: {:?}", plan.geometry, plan.check());
            }
        }
    }

    /// Every row that a rank lacks of the other branch's prediction, or of what it decodes, comes
    /// from exactly one peer.
    #[test]
    fn s3_whole_rows_arrive_once(plan in plans()) {
        let predicted = |rank| plan.member(rank).map(|member| member.band.rows);
        for to in plan.ranks() {
            let rows = |ask| -> u32 {
                let sent = plan.ranks().filter_map(|from| {
                    protocol::plan::rows_sent(&plan, ask, from, to).map(|band| band.rows)
                });
                sent.sum()
            };
            let member = plan.member(to).expect("a rank of the plan");
            let split = member.branch != Branch::Whole && !plan.is_naive();
            let wanted = if split { predicted(to) } else { Some(0) };
            prop_assert_eq!(Some(rows(Ask::Prediction)), wanted);
            let wanted = if member.has_what_it_decodes() { 0 } else { member.decodes.rows };
            prop_assert_eq!(rows(Ask::Latent), wanted);
        }
    }
}
