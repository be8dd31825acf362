//! Several ranks against the public DistriFusion code (S-7): every case of `distri.json`, in
//! this process over links in memory, and as worker processes over TCP.

use protocol::plan::Branch;
use std::path::Path;
use std::sync::Arc;
use tests::cluster::{coordinator, options, text};
use tests::fixture::{self, Case};
use tests::render::{links, plan_of, render};
use tests::tolerance::relative_l2;
use worker::model::checkpoint::Checkpoint;
use worker::model::files::ModelFiles;

/// Relative L2 per step. Most cases agree to 2e-6; `sync_gn` and `separate_gn` to 2e-4, because there
/// the reference's first convolution reads edges that are two calls old from the second displaced
/// call on (so few layers queue exchanges that the queue is flushed in the next call). Ours are one
/// call old in every mode.
const STEP_TOLERANCE: f64 = 1e-3;

/// How a case is rendered: the latent after each call.
type Fabric = fn(&Case, &Path) -> Vec<Vec<f64>>;

fn memory(case: &Case, scratch: &Path) -> Vec<Vec<f64>> {
    let files = ModelFiles::Folder(case.model(scratch));
    let checkpoint = Arc::new(Checkpoint::load(&files, protocol::job::Dtype::Auto).unwrap());
    let ranks = usize::from(case.n);
    let parts = match case.split_batch {
        true => vec![(Branch::Negative, ranks / 2), (Branch::Prompt, ranks / 2)],
        false => vec![(Branch::Whole, ranks)],
    };
    let plan = plan_of(&checkpoint, &case.spec(), &parts);
    render(&checkpoint, &plan, links(&checkpoint, &plan, None)).unwrap().latents
}

fn tcp(case: &Case, scratch: &Path) -> Vec<Vec<f64>> {
    let file = |name: &str| scratch.join(name).display().to_string();
    let model = case.model(scratch).display().to_string();
    let (image, latents, local) = (file("image.png"), file("latents"), case.n.to_string());
    let mut arguments = vec!["submit", "--local", &local, "--model", &model, "--out", &image];
    arguments.extend(["--save-latents", &latents, "--fabric", "tcp"]);
    arguments.extend(["--cfg-split", if case.split_batch { "on" } else { "off" }]);
    let options = options(&case.spec());
    arguments.extend(options.iter().map(String::as_str));
    let output = coordinator(&arguments);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let saved = &fixture::read_safetensors(Path::new(&latents))["latents"];
    (0..saved.shape[0]).map(|call| saved.part(call).to_vec()).collect()
}

fn check(name: &str, fabric: Fabric) {
    let case = fixture::case("distri.json", name);
    let scratch = tempfile::tempdir().unwrap();
    let rendered = fabric(&case, scratch.path());
    let want = &case.tensors("distri")["latents"];
    assert_eq!(rendered.len(), want.shape[0], "{name}: calls");
    for (call, latent) in rendered.iter().enumerate() {
        let error = relative_l2(latent, want.part(call));
        println!("{name}: call {call}: {error:.2e}");
        assert!(error < STEP_TOLERANCE, "{name}: call {call} is off by {error:.2e}");
    }
}

macro_rules! golden {
    ($($test:ident = $name:literal),+ $(,)?) => {
        mod s7_in_memory {
            $(#[test]
            fn $test() {
                super::check($name, super::memory);
            })+
        }

        mod s7_over_tcp {
            $(#[test]
            fn $test() {
                super::check($name, super::tcp);
            })+
        }

        #[test]
        fn cases_without_a_test_of_their_own() {
            for case in fixture::cases_beyond("distri.json", &[$($name),+]) {
                check(&case.name, memory);
                check(&case.name, tcp);
            }
        }
    };
}

golden!(
    sdxl_n2_corrected_w1 = "sdxl-n2-flat-corrected-w1",
    sdxl_n4_corrected_w1 = "sdxl-n4-flat-corrected-w1",
    sdxl_n4_cfg_corrected_w1 = "sdxl-n4-cfg-corrected-w1",
    sdxl_n8_cfg_corrected_w1 = "sdxl-n8-cfg-corrected-w1",
    sdxl_n2_stale_w1 = "sdxl-n2-flat-stale_gn-w1",
    sdxl_n2_sync_gn_w1 = "sdxl-n2-flat-sync_gn-w1",
    sdxl_n2_separate_w1 = "sdxl-n2-flat-separate_gn-w1",
    sdxl_n2_no_sync_w1 = "sdxl-n2-flat-no_sync-w1",
    sdxl_n2_full_sync_w1 = "sdxl-n2-flat-full_sync-w1",
    sdxl_n2_corrected_w4 = "sdxl-n2-flat-corrected-w4",
    sdxl_n4_corrected_w0_euler = "sdxl-n4-flat-corrected-w0-euler",
    sdxl_n2_corrected_w1_dpmpp = "sdxl-n2-flat-corrected-w1-dpmpp",
    sdxl_n2_corrected_w1_nocfg = "sdxl-n2-nocfg-corrected-w1",
    sdxl_n4_corrected_w1_128x192 = "sdxl-n4-flat-corrected-w1-128x192",
    sdxl_n2_tensor = "sdxl-n2-tensor",
    sdxl_n2_naive_row = "sdxl-n2-naive-row",
    sdxl_n2_naive_alternate = "sdxl-n2-naive-alternate",
    sd15_n2_corrected_w1 = "sd15-n2-flat-corrected-w1",
);
