//! Which of several processes this one is, as the program says that started them all.

/// The place of this process among those that were started with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ranks {
    /// Which it is, from 0.
    pub(crate) rank: u16,
    /// How many there are.
    pub(crate) size: u16,
    /// Which it is on its machine, from 0.
    pub(crate) local: u16,
    /// How many of them are on its machine, if that is said.
    pub(crate) beside: Option<u16>,
}

/// The variables of one starting program: rank, size, and on the machine rank and size.
type Names = [&'static str; 4];

/// Those that are known. Slurm's are last: they are also around an `mpirun` within a Slurm job, once for all ranks.
const KNOWN: [(&str, Names); 4] = [
    (
        "Open MPI",
        [
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ],
    ),
    ("MPICH", ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]),
    ("torchrun", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]),
    ("Slurm", ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ""]),
];

/// Why the place is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RanksError {
    /// Nobody says it.
    #[error(
        "nothing in the environment says which rank this is: start it with srun, mpirun or torchrun, \
         which set {}",
        names()
    )]
    Unsaid,
    /// What is said makes no sense.
    #[error("{variable}={value}, which {of} should have set, is no number of ranks")]
    Senseless {
        /// Which variable.
        variable: &'static str,
        /// What it says.
        value: String,
        /// Whose it is.
        of: &'static str,
    },
}

fn names() -> String {
    KNOWN.map(|(_, [rank, size, ..])| format!("{rank} and {size}")).join(", or ")
}

impl Ranks {
    /// Reads it from the environment, which `variable` is.
    ///
    /// # Errors
    /// If it is not said, or makes no sense.
    pub(crate) fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, RanksError> {
        let said = |name: &&str| !name.is_empty() && variable(name).is_some();
        let known = KNOWN.iter().find(|(_, [rank, size, ..])| said(rank) && said(size));
        let (of, [rank, size, local, beside]) = *known.ok_or(RanksError::Unsaid)?;
        let number = |name: &'static str| -> Result<Option<u16>, RanksError> {
            let Some(value) = variable(name).filter(|_| !name.is_empty()) else { return Ok(None) };
            match value.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(RanksError::Senseless { variable: name, value, of }),
            }
        };
        let senseless = |name| {
            let value = variable(name).unwrap_or_default();
            RanksError::Senseless { variable: name, value, of }
        };
        let all = number(size)?.filter(|size| *size > 0).ok_or_else(|| senseless(size))?;
        let own = number(rank)?.filter(|rank| *rank < all).ok_or_else(|| senseless(rank))?;
        // Slurm may say the first two as MPICH does, and this one in its own way.
        let local =
            number(local)?.map_or_else(|| number("SLURM_LOCALID"), |local| Ok(Some(local)))?;
        let local = local.unwrap_or(0);
        let beside = match variable("SLURM_JOB_NUM_NODES").as_deref() {
            Some("1") => Some(all),
            _ => number(beside)?,
        };
        Ok(Self { rank: own, size: all, local, beside })
    }

    /// What logs and status call the worker of this rank.
    pub(crate) fn name(rank: u16) -> String {
        format!("rank-{rank}")
    }

    /// Which of the GPUs that it sees is its own. One that was given a single one sees no other.
    pub(crate) fn gpu(&self, visible: Option<&str>) -> u16 {
        match visible {
            Some(list) if !list.contains(',') => 0,
            _ => self.local,
        }
    }

    /// Whether all are known to be on this machine.
    pub(crate) fn all_here(&self) -> bool {
        self.beside == Some(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Ranks, RanksError> {
        Ranks::of(|name| {
            let found = variables.iter().find(|(each, _)| *each == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn ranks_are_what_the_starting_program_says() {
        let slurm = [("SLURM_PROCID", "5"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "1")];
        let ranks = Ranks { rank: 5, size: 8, local: 1, beside: None };
        assert_eq!(of(&slurm), Ok(ranks));
        assert!(!ranks.all_here());
        let alone = [&slurm[..], &[("SLURM_JOB_NUM_NODES", "1")]].concat();
        assert!(of(&alone).unwrap().all_here());
        let open = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];
        let within = [&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")], &open[..]].concat();
        assert_eq!(of(&within).map(|ranks| (ranks.rank, ranks.size)), Ok((1, 2)));
        let mpich = [("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("MPI_LOCALNRANKS", "2")];
        assert!(of(&mpich).unwrap().all_here());
        let pmi = [&slurm[..], &[("PMI_RANK", "5"), ("PMI_SIZE", "8")]].concat();
        assert_eq!(of(&pmi), Ok(ranks));
        assert_eq!((ranks.gpu(None), ranks.gpu(Some("0,1")), ranks.gpu(Some("3"))), (1, 1, 0));
    }

    #[test]
    fn what_is_not_said_or_makes_no_sense_is_named() {
        assert!(of(&[]).unwrap_err().to_string().contains("SLURM_PROCID"));
        for (rank, size, variable) in
            [("8", "8", "SLURM_PROCID"), ("0", "0", "SLURM_NTASKS"), ("x", "2", "SLURM_PROCID")]
        {
            let said = of(&[("SLURM_PROCID", rank), ("SLURM_NTASKS", size)]).unwrap_err();
            assert!(said.to_string().starts_with(&format!("{variable}=")), "{said}");
        }
    }
}
