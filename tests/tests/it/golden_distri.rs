//! Several ranks against the public DistriFusion code: `full_sync` and `corrected` cases of
//! `distri.json`, first in this process over memory links (S-7).

use std::sync::Arc;
use tests::fixture;
use tests::render::{mesh, plan, render};
use tests::tolerance::relative_l2;
use worker::model::checkpoint::Checkpoint;
use worker::model::files::ModelFiles;

/// Relative L2 per step.
const STEP_TOLERANCE: f64 = 1e-3;

fn check(name: &str) {
    let case = fixture::case("distri.json", name);
    assert!(case.is_flat_patch(), "{name} is not a flat patch case");
    let scratch = tempfile::tempdir().unwrap();
    let files = ModelFiles::Folder(case.model(scratch.path()));
    let checkpoint = Arc::new(Checkpoint::load(&files, protocol::job::Dtype::Auto).unwrap());
    let plan = plan(&checkpoint, &case.spec(), case.n.into());
    let mut links = mesh(&plan);
    let rendered =
        render(&checkpoint, &plan, |rank| std::mem::take(&mut links[rank.index()])).unwrap();
    let want = &case.tensors("distri")["latents"];
    assert_eq!(rendered.latents.len(), want.shape[0], "{name}: calls");
    for (call, latent) in rendered.latents.iter().enumerate() {
        let error = relative_l2(latent, want.part(call));
        println!("{name}: call {call}: {error:.2e}");
        assert!(error < STEP_TOLERANCE, "{name}: call {call} is off by {error:.2e}");
    }
}

macro_rules! golden {
    ($($test:ident = $name:literal),+ $(,)?) => {
        $(#[test]
        fn $test() {
            check($name);
        })+

        #[test]
        fn no_case_is_forgotten() {
            let mut known = vec![$($name),+];
            known.sort_unstable();
            let mut wanted: Vec<String> = fixture::cases("distri.json")
                .into_iter()
                .filter(|case| case.is_flat_patch())
                .filter(|case| ["corrected_async_gn", "full_sync"].contains(&case.mode.as_str()))
                .map(|case| case.name)
                .collect();
            wanted.sort_unstable();
            assert_eq!(known, wanted);
        }
    };
}

golden!(
    sdxl_n2_corrected_w1 = "sdxl-n2-flat-corrected-w1",
    sdxl_n4_corrected_w1 = "sdxl-n4-flat-corrected-w1",
    sdxl_n2_full_sync_w1 = "sdxl-n2-flat-full_sync-w1",
    sdxl_n2_corrected_w4 = "sdxl-n2-flat-corrected-w4",
    sdxl_n4_corrected_w0_euler = "sdxl-n4-flat-corrected-w0-euler",
    sdxl_n2_corrected_w1_dpmpp = "sdxl-n2-flat-corrected-w1-dpmpp",
    sdxl_n2_corrected_w1_nocfg = "sdxl-n2-nocfg-corrected-w1",
    sdxl_n4_corrected_w1_128x192 = "sdxl-n4-flat-corrected-w1-128x192",
    sd15_n2_corrected_w1 = "sd15-n2-flat-corrected-w1",
);
