//! The image of a plan that nothing disturbs, computed in one place without messages.

use super::sampler::{Rows, Sampler, Text, size, texts};
use protocol::job::{Mode, Warmup};
use protocol::plan::{Band, Branch, Plan};

/// What a plan renders.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Hex blake3 of the last latent.
    pub latent: String,
    /// RGB bytes.
    pub pixels: Vec<u8>,
}

/// What all ranks of one branch know of a call.
#[derive(Clone, Debug, Default)]
struct Shared {
    /// By place in the branch, then by text.
    hidden: Vec<Vec<Vec<f32>>>,
}

struct Rendering<'a> {
    plan: &'a Plan,
    sampler: Sampler,
    whole: Band,
    latent: Vec<f32>,
}

/// The image of `plan` from its first call to its last.
#[must_use]
pub fn render(plan: &Plan) -> Picture {
    let sampler = Sampler::of(plan);
    let whole = Band { top: 0, rows: plan.geometry.rows };
    let latent = sampler.noise(whole);
    let mut rendering = Rendering { plan, sampler, whole, latent };
    let mut before = [Shared::default(), Shared::default()];
    let mut history: Option<Vec<f32>> = None;
    for call in 0..plan.spec.steps {
        let predictions: Vec<Vec<Vec<f32>>> = [Branch::Negative, Branch::Prompt, Branch::Whole]
            .iter()
            .zip([0, 1, 0])
            .filter(|(branch, _)| plan.members.iter().any(|member| member.branch == **branch))
            .map(|(branch, place)| rendering.predict(*branch, call, &mut before[place]))
            .collect();
        let each: Vec<&Vec<f32>> = predictions.iter().flatten().collect();
        let guided = match each[..] {
            [negative, prompt] => sampler.guide(negative, prompt),
            ref own => own[0].clone(),
        };
        sampler.step(&mut rendering.latent, &guided, history.as_deref());
        history = Some(guided);
    }
    let values = &rendering.latent;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let rows = Rows { band: whole, values, above: None, below: None };
    Picture { latent: blake3::hash(&bytes).to_hex().to_string(), pixels: sampler.decode(rows) }
}

impl Rendering<'_> {
    /// A branch's predictions of the whole image, by text.
    fn predict(&mut self, branch: Branch, call: u32, before: &mut Shared) -> Vec<Vec<f32>> {
        let texts = texts(branch, self.plan.is_guided());
        let members = self.plan.members.iter().filter(|member| member.branch == branch);
        let bands: Vec<Band> = members.map(|member| member.band).collect();
        let fresh =
            Shared { hidden: bands.iter().map(|band| self.hide(*band, texts, call)).collect() };
        let warm = matches!(self.plan.spec.warmup, Warmup::Calls(last) if call > last);
        let displaced = self.plan.spec.mode != Mode::FullSync && warm && bands.len() > 1;
        let theirs = if displaced { &*before } else { &fresh };
        let mut whole: Vec<Vec<f32>> =
            texts.iter().map(|_| self.sampler.zeros(self.whole)).collect();
        for (at, text) in texts.iter().enumerate() {
            for (place, band) in bands.iter().enumerate() {
                let part = self.part((*text, at), call, (place, *band), (&fresh, theirs));
                self.sampler.paste((self.whole, &mut whole[at]), *band, &part);
            }
        }
        *before = fresh;
        whole
    }

    fn hide(&self, band: Band, texts: &[Text], call: u32) -> Vec<Vec<f32>> {
        let beside = |row: Option<u32>| row.map(|row| self.sampler.row(&self.latent, size(row)));
        let above = beside(band.top.checked_sub(1));
        let below = beside(Some(band.end()).filter(|row| *row < self.whole.rows));
        let values = self.sampler.cut(self.whole, &self.latent, band);
        let rows = Rows { band, values: &values, above: above.as_deref(), below: below.as_deref() };
        texts.iter().map(|text| self.sampler.hidden(*text, call, rows)).collect()
    }

    /// What one rank predicts for its band, given what it computed and what it knows of the others.
    fn part(
        &self,
        (text, at): (Text, usize),
        call: u32,
        (place, band): (usize, Band),
        (own, theirs): (&Shared, &Shared),
    ) -> Vec<f32> {
        let hidden = &own.hidden[place][at];
        let ranks = own.hidden.len();
        let mut sums = vec![0.0; self.sampler.sums(hidden).len()];
        for other in 0..ranks {
            let known = if other == place { own } else { theirs };
            let each = self.sampler.sums(&known.hidden[other][at]);
            sums.iter_mut().zip(each).for_each(|(sum, each)| *sum += each);
        }
        let edge = |other: usize, last: bool| {
            let values = &theirs.hidden[other][at];
            let rows = values.len() / self.sampler.row(values, 0).len();
            self.sampler.row(values, if last { rows - 1 } else { 0 })
        };
        let above = place.checked_sub(1).map(|other| edge(other, true));
        let below = (place + 1 < ranks).then(|| edge(place + 1, false));
        let rows = Rows { band, values: hidden, above: above.as_deref(), below: below.as_deref() };
        self.sampler.predict(text, call, rows, &sums)
    }
}
