//! From a request, a model and workers to a plan. Pure.

mod bands;
mod branches;
pub mod cost;
mod decode;
pub mod fabrics;
mod given;
mod memory;
mod pairs;
mod reason;
mod settle;

pub use self::branches::{Share, ShareError};
pub use self::given::check_given;
pub use self::pairs::{Cluster, LinkSpeed, Links, Pairs};
pub use self::settle::{
    DISPLACED_STEPS_MIN, GUIDANCE_MAX, PROMPT_BYTES_MAX, STEPS_DEFAULT, STEPS_MAX, settle,
};

use self::branches::{Sharing, Work};
use self::cost::{Forecast, Image};
use protocol::identity::Fingerprint;
use protocol::job::{Bands, CfgSplit, Field, JobRequest, JobSpec, Mode, ModelCard, Parallelism};
use protocol::plan::{Band, Fabric, Geometry, Lack, Member, Offer, Plan};
use protocol::{Fault, FaultKind, RunId, WorkerId};
use std::net::SocketAddr;

/// A worker that could take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its number.
    pub worker: WorkerId,
    /// Its name.
    pub name: String,
    /// Where its peers reach it.
    pub address: SocketAddr,
    /// Latent pixels a second of one prediction, as measured.
    pub speed: u64,
    /// Memory its machine had left when it joined, in bytes.
    pub free_bytes: u64,
    /// The fabrics that it offers its peers.
    pub offers: Vec<Offer>,
    /// Those that it does not, and why.
    pub lacks: Vec<Lack>,
    /// Which key it has; None in a cluster without identities.
    pub identity: Option<Fingerprint>,
}

fn invalid(cause: String) -> Fault {
    Fault::new(FaultKind::InvalidRequest, cause)
}

/// How many workers a job is to have, and how they are to share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Exactly so many. None: all that are there and can have a part.
    pub workers: Option<u16>,
    /// Whether guidance's two predictions are computed by different workers.
    pub cfg_split: CfgSplit,
    /// How they exchange activations. None: as fits the number of steps.
    pub mode: Option<Mode>,
    /// How tall their bands are.
    pub bands: Bands,
    /// The fabrics that they may exchange over; none named means all.
    pub fabrics: Vec<Fabric>,
    /// What was found not to carry between two workers.
    pub broken: Vec<([WorkerId; 2], Fabric)>,
}

impl Wish {
    /// The fewest workers that can fulfil it: a job waits for them.
    #[must_use]
    pub fn fewest(&self) -> u16 {
        let branches = if self.cfg_split == CfgSplit::On { 2 } else { 1 };
        self.workers.unwrap_or(branches)
    }
}

impl From<&JobRequest> for Wish {
    fn from(request: &JobRequest) -> Self {
        Self {
            workers: request.workers,
            cfg_split: request.cfg_split,
            mode: request.mode,
            bands: request.bands,
            fabrics: request.fabrics.clone(),
            broken: Vec::new(),
        }
    }
}

/// A plan, and why it is this one.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Who renders what.
    pub plan: Plan,
    /// Why, in words for people.
    pub reason: String,
}

/// A plan for `spec` on the workers of `cluster`, or on as many of them as were asked for or as its
/// height has bands for. Where the links between them were measured, seconds are predicted, and
/// decide between one branch and two.
///
/// # Errors
/// `InvalidRequest` if the image has too few rows for the workers asked for, or cannot be split as
/// asked; `NoWorkers` if there are too few.
pub fn place<'a>(
    run: RunId,
    spec: JobSpec,
    card: &ModelCard,
    cluster: impl Into<Cluster<'a>>,
    wish: Wish,
) -> Result<Placed, Fault> {
    let cluster: Cluster<'a> = cluster.into();
    let candidates = cluster.candidates;
    let geometry = Geometry {
        rows: spec.height / card.vae_factor,
        columns: spec.width / card.vae_factor,
        channels: card.latent_channels,
        row_unit: card.row_unit,
        vae_factor: card.vae_factor,
    };
    let units = match spec.parallelism {
        Parallelism::Patch => geometry.rows / geometry.row_unit,
        // Strips may be of rows or of columns.
        Parallelism::NaiveRow | Parallelism::NaiveCol | Parallelism::NaiveAlternate => {
            geometry.rows.min(geometry.columns) / geometry.row_unit
        }
        Parallelism::Tensor => card.shards_max,
    };
    let branch_max = usize::try_from(units).unwrap_or(usize::MAX);
    let guided = spec.guidance > 1.0;
    let most = branches::ranks_max(branch_max, guided, wish.cfg_split);
    let ranks = wish.workers.map_or_else(|| candidates.len().min(most), usize::from);
    // Said at once: the workers that are missing could come, and have no part.
    if ranks > most {
        let why = if spec.parallelism == Parallelism::Tensor {
            format!("the model's layers have {units} parts")
        } else {
            format!("bands are multiples of {} pixels", geometry.row_unit * geometry.vae_factor)
        };
        let cause = format!(
            "{ranks} workers cannot share {}x{} pixels: at most {most} can, as {why}{}",
            spec.width,
            spec.height,
            if guided && most <= branch_max { " (twice as many as two branches)" } else { "" }
        );
        return Err(invalid(cause).about(Field::Workers));
    }
    let needed = if guided { ranks.max(wish.fewest().into()) } else { ranks.max(1) };
    if candidates.len() < needed {
        let cause = format!("{} workers are there, {needed} are needed", candidates.len());
        return Err(Fault::new(FaultKind::NoWorkers, cause));
    }
    let bands = spec.parallelism.has_bands();
    // Strips and shards are even.
    let even = !bands || wish.bands == Bands::Even;
    let speeds: Vec<u64> =
        candidates[..ranks].iter().map(|each| if even { 1 } else { each.speed }).collect();
    let rows = units * geometry.row_unit;
    let work = Work { rows, unit: geometry.row_unit, guided, speeds: &speeds };
    // Only bands exchange what is predicted.
    let image = Image::of(&spec, card, geometry);
    let forecast = bands.then(|| Forecast::measured(image, cluster, ranks)).flatten();
    let Sharing { mut shares, mut reason } =
        branches::share(work, wish.cfg_split, forecast.as_ref())
            .map_err(|error| error.fault(&spec))?;
    reason += &reason::mode(&spec, rows, &shares, wish.mode);
    reason += &reason::bands(&shares, &speeds);
    if !bands {
        // Strips are cut anew in every call, shards are of layers; each rank steps all rows.
        let whole = Band { top: 0, rows: geometry.rows };
        shares.iter_mut().for_each(|share| share.band = whole);
    }
    let bands = decode::bands(&shares, geometry, &speeds);
    let bands = bands.map_err(|error| invalid(error.to_string()))?;
    let placed: Vec<&Candidate> = shares.iter().map(|share| &candidates[share.worker]).collect();
    let (decode, why) = decode::fit(spec.decode, &bands, &placed, (geometry, card.decode_bytes));
    reason += &why;
    let encode = given::encode_bytes(&spec, card);
    if spec.parallelism.has_bands() {
        memory::check((image, encode), &shares, &placed)?;
    }
    let spec = JobSpec { decode, ..spec };
    let members = shares.iter().zip(bands).map(|(share, decodes)| {
        let candidate = &candidates[share.worker];
        Member {
            worker: candidate.worker,
            name: candidate.name.clone(),
            address: candidate.address,
            offers: candidate.offers.clone(),
            branch: share.branch,
            band: share.band,
            decodes,
            identity: candidate.identity,
        }
    });
    let members: Vec<Member> = members.collect();
    let broken = fabrics::broken(&members, &wish.broken);
    let plan = Plan { run, spec, geometry, members, fabrics: wish.fabrics, broken };
    fabrics::check(&plan, &placed)?;
    plan.check().map_err(|error| invalid(error.to_string()))?;
    Ok(Placed { plan, reason })
}

/// `plan` with others in the places of those of its workers that are not among `candidates`: the same bands, so
/// the same bits. None if there are too few, or they cannot exchange.
#[must_use]
pub fn refill(
    plan: &Plan,
    run: RunId,
    candidates: &[Candidate],
    broken: &[([WorkerId; 2], Fabric)],
) -> Option<Plan> {
    let of = |worker| candidates.iter().find(|each| each.worker == worker);
    let taken = |each: &Candidate| plan.members.iter().any(|member| member.worker == each.worker);
    let mut spares = candidates.iter().filter(|each| !taken(each));
    let placed: Option<Vec<&Candidate>> =
        plan.members.iter().map(|member| of(member.worker).or_else(|| spares.next())).collect();
    let placed = placed?;
    let members = plan.members.iter().zip(&placed).map(|(member, candidate)| Member {
        worker: candidate.worker,
        name: candidate.name.clone(),
        address: candidate.address,
        offers: candidate.offers.clone(),
        identity: candidate.identity,
        ..member.clone()
    });
    let members: Vec<Member> = members.collect();
    let broken = fabrics::broken(&members, broken);
    let plan = Plan { run, members, broken, ..plan.clone() };
    fabrics::check(&plan, &placed).is_ok().then_some(plan)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use protocol::job::{Dtype, ModelWork, Scheduler};
    use protocol::plan::Branch;
    use std::net::Ipv4Addr;

    pub(crate) fn request() -> JobRequest {
        JobRequest::new("a")
    }

    pub(crate) const ANY: Wish = Wish {
        workers: None,
        cfg_split: CfgSplit::Auto,
        mode: None,
        bands: Bands::Auto,
        fabrics: Vec::new(),
        broken: Vec::new(),
    };

    pub(crate) fn card() -> ModelCard {
        ModelCard {
            name: "tiny".to_owned(),
            digest: "ab".repeat(32),
            family: "sdxl".to_owned(),
            dtype: Dtype::F16,
            latent_channels: 4,
            vae_factor: 8,
            row_unit: 4,
            native: (128, 128),
            scheduler: Scheduler::Euler,
            guidance: 5.0,
            weight_bytes: 1,
            shards_max: 2,
            decode_bytes: 1000,
            work: ModelWork::default(),
            preview: None,
            encode_bytes: 8,
        }
    }

    pub(crate) fn candidates(count: u64) -> Vec<Candidate> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let named = |number| Candidate {
            worker: WorkerId(number),
            name: format!("w{number}"),
            address,
            speed: 100,
            free_bytes: 8 << 30,
            offers: vec![Offer::Tcp],
            lacks: Vec::new(),
            identity: None,
        };
        (1..=count).map(named).collect()
    }

    pub(crate) fn plan(ranks: u64) -> Plan {
        plan_as(ranks, CfgSplit::Off)
    }

    pub(crate) fn plan_as(ranks: u64, cfg_split: CfgSplit) -> Plan {
        let spec = settle(&request(), &card(), 1).unwrap();
        let wish = Wish { cfg_split, ..ANY };
        let plan = place(RunId::default(), spec, &card(), &candidates(ranks), wish).unwrap().plan;
        plan.check().unwrap();
        plan
    }

    fn refusal(change: impl FnOnce(&mut JobRequest)) -> String {
        refused(change).0
    }

    fn refused(change: impl FnOnce(&mut JobRequest)) -> (String, Option<Field>) {
        let mut request = request();
        change(&mut request);
        let fault = settle(&request, &card(), 1).unwrap_err();
        assert_eq!(fault.kind, FaultKind::InvalidRequest);
        (fault.cause, fault.field)
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field() {
        let field = |change: fn(&mut JobRequest)| refused(change).1.unwrap();
        assert_eq!(field(|request| request.width = Some(250)), Field::Width);
        assert_eq!(field(|request| request.height = Some(9000)), Field::Height);
        assert_eq!(field(|request| request.steps = Some(0)), Field::Steps);
        assert_eq!(field(|request| request.guidance = Some(-1.0)), Field::Guidance);
        assert_eq!(field(|request| request.model = Some("sdxl".to_owned())), Field::Model);
        assert_eq!(field(|request| request.dtype = Some(Dtype::F32)), Field::Dtype);
        assert_eq!(field(|request| request.negative = Some("x".repeat(70_000))), Field::Negative);
    }

    #[test]
    fn what_is_left_out_is_the_models_default() {
        let spec = settle(&request(), &card(), 42).unwrap();
        assert_eq!((spec.width, spec.height, spec.steps, spec.seed), (128, 128, 30, 42));
        assert_eq!(spec.scheduler, Scheduler::Euler);
    }

    #[test]
    fn sizes_off_the_unit_are_told_the_two_nearest() {
        let cause = refusal(|request| request.width = Some(250));
        assert_eq!(cause, "width 250 is not a multiple of 32; the nearest are 224 and 256");
        let cause = refusal(|request| request.height = Some(0));
        assert_eq!(cause, "height 0 is not a multiple of 32; the smallest is 32");
        let cause = refusal(|request| request.height = Some(9000));
        assert_eq!(cause, "height 9000 is too large; the largest is 8192");
    }

    #[test]
    fn values_out_of_range_are_named() {
        assert!(refusal(|request| request.steps = Some(0)).contains("0 steps"));
        assert!(refusal(|request| request.steps = Some(1001)).contains("1001 steps"));
        assert!(refusal(|request| request.guidance = Some(f32::NAN)).contains("NaN"));
        assert!(refusal(|request| request.guidance = Some(-1.0)).contains("-1"));
        assert!(refusal(|request| request.prompt = "x".repeat(70_000)).contains("70000 bytes"));
    }

    #[test]
    fn another_model_or_dtype_is_refused_with_both_named() {
        let cause = refusal(|request| request.model = Some("sdxl".to_owned()));
        assert!(cause.contains("`tiny`") && cause.contains("`sdxl`"), "{cause}");
        let cause = refusal(|request| request.dtype = Some(Dtype::F32));
        assert!(cause.contains("f16") && cause.contains("f32"), "{cause}");
    }

    #[test]
    fn too_few_rows_say_how_many_workers_fit() {
        let spec = settle(&request(), &card(), 1).unwrap();
        let run = RunId::default();
        let wish = Wish { workers: Some(5), cfg_split: CfgSplit::Off, ..ANY };
        let fault = place(run, spec.clone(), &card(), &candidates(5), wish).unwrap_err();
        assert_eq!((fault.kind, fault.field), (FaultKind::InvalidRequest, Some(Field::Workers)));
        assert!(fault.cause.contains("5 workers") && fault.cause.contains("at most 4"), "{fault}");
        let many = Wish { workers: Some(9), ..ANY };
        let fault = place(run, spec.clone(), &card(), &candidates(1), many).unwrap_err();
        assert_eq!(fault.kind, FaultKind::InvalidRequest, "no use in waiting: {fault}");
        assert!(fault.cause.contains("at most 8"), "{fault}");
        let wish = Wish { cfg_split: CfgSplit::Off, ..ANY };
        let plan = place(run, spec.clone(), &card(), &candidates(5), wish).unwrap().plan;
        assert_eq!(plan.world_size(), 4, "the fifth worker has no rows to render");
        let plan = place(run, spec, &card(), &candidates(9), ANY).unwrap().plan;
        assert_eq!(plan.world_size(), 8, "two branches have room for twice as many");
    }

    #[test]
    fn layers_have_parts_for_so_many_workers_only() {
        let spec = settle(&request(), &card(), 1).unwrap();
        let spec = JobSpec { parallelism: Parallelism::Tensor, ..spec };
        let placed = |workers| {
            let wish = Wish { workers: Some(workers), cfg_split: CfgSplit::Off, ..ANY };
            place(RunId::default(), spec.clone(), &card(), &candidates(3), wish)
        };
        let plan = placed(2).unwrap().plan;
        assert!(plan.members.iter().all(|member| member.band.rows == plan.geometry.rows));
        assert_eq!(plan.members[1].decodes, Band { top: 8, rows: 8 });
        let fault = placed(3).unwrap_err();
        assert!(
            fault.cause.contains("at most 2 can, as the model's layers have 2 parts"),
            "{fault}"
        );
    }

    #[test]
    fn few_steps_are_synchronous_unless_told_and_the_reason_says_so() {
        let placed = |steps, mode| {
            let asked = JobRequest { steps: Some(steps), mode, ..request() };
            let spec = settle(&asked, &card(), 1).unwrap();
            let wish = Wish { cfg_split: CfgSplit::Off, ..Wish::from(&asked) };
            place(RunId::default(), spec, &card(), &candidates(2), wish).unwrap()
        };
        let few = placed(4, None);
        assert_eq!(few.plan.spec.mode, Mode::FullSync);
        assert!(few.reason.contains("4 steps are fewer than 10"), "{}", few.reason);
        assert_eq!(placed(4, Some(Mode::Stale)).plan.spec.mode, Mode::Stale);
        let many = placed(10, None);
        assert_eq!(many.plan.spec.mode, Mode::Corrected);
        assert!(!many.reason.contains("steps"), "{}", many.reason);
    }

    #[test]
    fn a_slow_worker_gets_fewer_rows_unless_even_bands_are_asked_for() {
        let spec = JobSpec { height: 384, ..settle(&request(), &card(), 1).unwrap() };
        let mut candidates = candidates(2);
        candidates[0].speed = 50;
        let rows = |bands| {
            let wish = Wish { cfg_split: CfgSplit::Off, bands, ..ANY };
            let placed = place(RunId::default(), spec.clone(), &card(), &candidates, wish).unwrap();
            let rows = placed.plan.members.iter().map(|member| member.band.rows);
            (rows.collect::<Vec<_>>(), placed.reason)
        };
        let (auto, reason) = rows(Bands::Auto);
        assert_eq!(auto, [16, 32]);
        assert!(reason.contains("0.50, 1.00"), "{reason}");
        assert_eq!(rows(Bands::Even).0, [24, 24]);
    }

    #[test]
    fn without_workers_there_is_no_plan() {
        let spec = settle(&request(), &card(), 1).unwrap();
        let fault = place(RunId::default(), spec, &card(), &[], ANY).unwrap_err();
        assert_eq!(fault.kind, FaultKind::NoWorkers);
    }

    #[test]
    fn two_branches_wait_for_a_second_worker_unless_one_was_asked_for() {
        let spec = settle(&request(), &card(), 1).unwrap();
        let fault = |workers| {
            let wish = Wish { cfg_split: CfgSplit::On, workers, ..ANY };
            place(RunId::default(), spec.clone(), &card(), &candidates(1), wish).unwrap_err()
        };
        assert_eq!(fault(None).kind, FaultKind::NoWorkers);
        assert_eq!(fault(Some(1)).kind, FaultKind::InvalidRequest);
    }

    #[test]
    fn s3_branches_cover_the_image_twice_and_the_decode_once() {
        let plan = plan_as(5, CfgSplit::On);
        let parts = plan.members.iter().map(|member| (member.branch, member.band.rows));
        let (negative, prompt) = (Branch::Negative, Branch::Prompt);
        let expected = [(negative, 8), (negative, 8), (prompt, 8), (prompt, 4), (prompt, 4)];
        assert_eq!(parts.collect::<Vec<_>>(), expected);
        let decodes = plan.members.iter().map(|member| member.decodes.rows);
        assert_eq!(decodes.collect::<Vec<_>>(), [4, 3, 3, 3, 3]);
    }
}
