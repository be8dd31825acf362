//! Whether an image fits the memory of those who are to render it.

use super::branches::Share;
use super::cost::{self, Image};
use super::{Candidate, invalid};
use protocol::Fault;

/// Refuses an image whose prediction takes more memory than some machine has left, before anybody starts on it.
/// How it is decoded was fitted to that memory already. Each rank takes `encode` bytes before its first call, in which they are free again.
pub(super) fn check(
    (image, encode): (Image<'_>, u64),
    shares: &[Share],
    workers: &[&Candidate],
) -> Result<(), Fault> {
    let mut needs = cost::memory(image, shares);
    needs.iter_mut().for_each(|need| *need = encode.max(*need));
    for worker in workers {
        // Ranks on one machine share what it has left.
        let host = worker.address.ip();
        let beside = workers.iter().zip(&needs).filter(|(other, _)| other.address.ip() == host);
        let needed: u64 = beside.map(|(_, need)| need).sum();
        if needed > worker.free_bytes {
            return Err(invalid(format!(
                "{} x {} pixels take {} MiB beside the model on the machine of {}, which has {} MiB left: \
                 render it smaller, or on more machines, or with more --memory where that was limited",
                image.geometry.columns * image.geometry.vae_factor,
                image.geometry.rows * image.geometry.vae_factor,
                needed >> 20,
                worker.name,
                worker.free_bytes >> 20
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::cost::preset;
    use super::super::tests::{ANY, candidates, request};
    use super::super::{place, settle};
    use protocol::job::{FileDigest, Init, JobRequest, JobSpec};
    use protocol::{FaultKind, RunId};
    use std::net::{IpAddr, Ipv4Addr};

    #[test]
    fn a_picture_that_cannot_be_encoded_is_refused_though_its_image_would_fit() {
        let card = preset::card("sdxl").unwrap();
        let side = Some(1024);
        let request = JobRequest { width: side, height: side, ..request() };
        let plain = settle(&request, &card, 1).unwrap();
        let init = Some(Init { file: FileDigest([7; 32]), strength: 0.5 });
        let begun = JobSpec { init, ..plain.clone() };
        let mut workers = candidates(1);
        // 1536 bytes a pixel.
        workers[0].free_bytes = 1500 << 20;
        place(RunId::default(), plain, &card, &workers[..], ANY).unwrap();
        let fault = place(RunId::default(), begun.clone(), &card, &workers[..], ANY).unwrap_err();
        assert!(fault.cause.contains("1536 MiB"), "{fault}");
        workers[0].free_bytes = 1540 << 20;
        place(RunId::default(), begun, &card, &workers[..], ANY).unwrap();
    }

    #[test]
    fn an_image_that_cannot_fit_is_refused_with_the_numbers_and_fits_more_machines() {
        let card = preset::card("sdxl").unwrap();
        let side = Some(4096);
        let request = JobRequest { width: side, height: side, ..request() };
        let spec = settle(&request, &card, 1).unwrap();
        let mut workers = candidates(4);
        let fault = place(RunId::default(), spec.clone(), &card, &workers[..], ANY).unwrap_err();
        assert_eq!(fault.kind, FaultKind::InvalidRequest);
        assert!(fault.cause.contains("machine of w1, which has 8192 MiB left"), "{fault}");
        for (number, worker) in (1..).zip(&mut workers) {
            worker.address.set_ip(IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)));
            worker.free_bytes = 24 << 30;
        }
        place(RunId::default(), spec, &card, &workers[..], ANY).unwrap();
    }
}
