"""Where objectives, estimators and algorithms come from: the table of `vi.citation`, read when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Venue:
    """Where something was published: the kind of entry, and which field holds the name."""

    kind: str
    field: str
    name: str


def _proceedings(name: str) -> Venue:
    return Venue("inproceedings", "booktitle", name)


def _journal(name: str) -> Venue:
    return Venue("article", "journal", name)


AISTATS = _proceedings("Artificial Intelligence and Statistics")
ICLR = _proceedings("International Conference on Learning Representations")
ICML = _proceedings("International Conference on Machine Learning")
NEURIPS = _proceedings("Advances in Neural Information Processing Systems")
ARXIV = Venue("misc", "howpublished", "arXiv preprint")
JMLR = _journal("Journal of Machine Learning Research")
MACHINE_LEARNING = _journal("Machine Learning")
STATISTICS_AND_COMPUTING = _journal("Statistics and Computing")


@dataclass(frozen=True)
class Entry:
    """One publication, in the words of BibTeX."""

    authors: str
    year: int
    title: str
    venue: Venue

    def text(self, key: str) -> str:
        """As an entry; the title keeps its capitals."""
        fields = {
            "author": self.authors,
            "title": f"{{{self.title}}}",
            self.venue.field: self.venue.name,
            "year": str(self.year),
        }
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
        return "\n".join([f"@{self.venue.kind}{{{key},", *lines, "}"])


ENTRIES = {
    "andrieu2010particle": Entry(
        "Andrieu, Christophe and Doucet, Arnaud and Holenstein, Roman",
        2010,
        "Particle Markov Chain Monte Carlo Methods",
        _journal("Journal of the Royal Statistical Society: Series B"),
    ),
    "arasaratnam2009cubature": Entry(
        "Arasaratnam, Ienkaran and Haykin, Simon",
        2009,
        "Cubature Kalman Filters",
        _journal("IEEE Transactions on Automatic Control"),
    ),
    "arratia2019size": Entry(
        "Arratia, Richard and Goldstein, Larry and Kochman, Fred",
        2019,
        "Size Bias for One and All",
        _journal("Probability Surveys"),
    ),
    "bauer2021generalized": Entry(
        "Bauer, Matthias and Mnih, Andriy",
        2021,
        "Generalized Doubly Reparameterized Gradient Estimators",
        ICML,
    ),
    "becker2024probabilistic": Entry(
        "Becker, McCoy R. and Lew, Alexander K. and Wang, Xiaoyan and Ghavami, Matin and Huot, Mathieu and"
        " Rinard, Martin C. and Mansinghka, Vikash K.",
        2024,
        "Probabilistic Programming with Programmable Variational Inference",
        _journal("Proceedings of the ACM on Programming Languages"),
    ),
    "bengio2013estimating": Entry(
        r"Bengio, Yoshua and L{\'e}onard, Nicholas and Courville, Aaron",
        2013,
        "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation",
        ARXIV,
    ),
    "best1979efficient": Entry(
        "Best, D. J. and Fisher, N. I.",
        1979,
        "Efficient Simulation of the von Mises Distribution",
        _journal("Journal of the Royal Statistical Society: Series C"),
    ),
    "bingham2019pyro": Entry(
        "Bingham, Eli and Chen, Jonathan P. and Jankowiak, Martin and Obermeyer, Fritz and Pradhan, Neeraj and"
        " Karaletsos, Theofanis and Singh, Rohit and Szerlip, Paul and Horsfall, Paul and Goodman, Noah D.",
        2019,
        "Pyro: Deep Universal Probabilistic Programming",
        JMLR,
    ),
    "blessing2024beyond": Entry(
        "Blessing, Denis and Jia, Xiaogang and Esslinger, Johannes and Vargas, Francisco and Neumann, Gerhard",
        2024,
        "Beyond ELBOs: A Large-Scale Evaluation of Variational Methods for Sampling",
        ICML,
    ),
    "bornschein2015reweighted": Entry(
        r"Bornschein, J{\"o}rg and Bengio, Yoshua", 2015, "Reweighted Wake-Sleep", ICLR
    ),
    "burda2016importance": Entry(
        "Burda, Yuri and Grosse, Roger and Salakhutdinov, Ruslan",
        2016,
        "Importance Weighted Autoencoders",
        ICLR,
    ),
    "cremer2017reinterpreting": Entry(
        "Cremer, Chris and Morris, Quaid and Duvenaud, David",
        2017,
        "Reinterpreting Importance-Weighted Autoencoders",
        _proceedings("International Conference on Learning Representations, Workshop Track"),
    ),
    "dieng2017variational": Entry(
        "Dieng, Adji B. and Tran, Dustin and Ranganath, Rajesh and Paisley, John and Blei, David M.",
        2017,
        r"Variational Inference via $\chi$ Upper Bound Minimization",
        NEURIPS,
    ),
    "dong2020disarm": Entry(
        "Dong, Zhe and Mnih, Andriy and Tucker, George",
        2020,
        "DisARM: An Antithetic Gradient Estimator for Binary Latent Variables",
        NEURIPS,
    ),
    "dong2021coupled": Entry(
        "Dong, Zhe and Mnih, Andriy and Tucker, George",
        2021,
        "Coupled Gradient Estimators for Discrete Latent Variables",
        NEURIPS,
    ),
    "doucet2022score": Entry(
        "Doucet, Arnaud and Grathwohl, Will and Matthews, Alexander G. D. G. and Strathmann, Heiko",
        2022,
        "Score-Based Diffusion meets Annealed Importance Sampling",
        NEURIPS,
    ),
    "figurnov2018implicit": Entry(
        "Figurnov, Michael and Mohamed, Shakir and Mnih, Andriy",
        2018,
        "Implicit Reparameterization Gradients",
        NEURIPS,
    ),
    "geffner2021mcmc": Entry(
        "Geffner, Tomas and Domke, Justin",
        2021,
        "MCMC Variational Inference via Uncorrected Hamiltonian Annealing",
        NEURIPS,
    ),
    "golub1969calculation": Entry(
        "Golub, Gene H. and Welsch, John H.",
        1969,
        "Calculation of Gauss Quadrature Rules",
        _journal("Mathematics of Computation"),
    ),
    "grathwohl2018backpropagation": Entry(
        "Grathwohl, Will and Choi, Dami and Wu, Yuhuai and Roeder, Geoffrey and Duvenaud, David",
        2018,
        "Backpropagation through the Void: Optimizing Control Variates for Black-Box Gradient Estimation",
        ICLR,
    ),
    "graves2016stochastic": Entry(
        "Graves, Alex",
        2016,
        "Stochastic Backpropagation through Mixture Density Distributions",
        ARXIV,
    ),
    "hinton1995wake": Entry(
        "Hinton, Geoffrey E. and Dayan, Peter and Frey, Brendan J. and Neal, Radford M.",
        1995,
        'The "Wake-Sleep" Algorithm for Unsupervised Neural Networks',
        _journal("Science"),
    ),
    "jang2017categorical": Entry(
        "Jang, Eric and Gu, Shixiang and Poole, Ben",
        2017,
        "Categorical Reparameterization with Gumbel-Softmax",
        ICLR,
    ),
    "ji2019stochastic": Entry(
        "Ji, Chunlin and Shen, Haige",
        2019,
        "Stochastic Variational Inference via Upper Bound",
        ARXIV,
    ),
    "jordan1999introduction": Entry(
        "Jordan, Michael I. and Ghahramani, Zoubin and Jaakkola, Tommi S. and Saul, Lawrence K.",
        1999,
        "An Introduction to Variational Methods for Graphical Models",
        MACHINE_LEARNING,
    ),
    "kingma2014auto": Entry(
        "Kingma, Diederik P. and Welling, Max", 2014, "Auto-Encoding Variational Bayes", ICLR
    ),
    "kool2019buy": Entry(
        "Kool, Wouter and van Hoof, Herke and Welling, Max",
        2019,
        "Buy 4 REINFORCE Samples, Get a Baseline for Free!",
        _proceedings("ICLR Workshop on Deep Reinforcement Learning Meets Structured Prediction"),
    ),
    "kool2020estimating": Entry(
        "Kool, Wouter and van Hoof, Herke and Welling, Max",
        2020,
        "Estimating Gradients for Discrete Random Variables by Sampling without Replacement",
        ICLR,
    ),
    "le2018auto": Entry(
        "Le, Tuan Anh and Igl, Maximilian and Rainforth, Tom and Jin, Tom and Wood, Frank",
        2018,
        "Auto-Encoding Sequential Monte Carlo",
        ICLR,
    ),
    "le2020revisiting": Entry(
        "Le, Tuan Anh and Kosiorek, Adam R. and Siddharth, N. and Teh, Yee Whye and Wood, Frank",
        2020,
        "Revisiting Reweighted Wake-Sleep for Models with Stochastic Control Flow",
        _proceedings("Uncertainty in Artificial Intelligence"),
    ),
    "li2016renyi": Entry(
        "Li, Yingzhen and Turner, Richard E.",
        2016,
        r"R{\'e}nyi Divergence Variational Inference",
        NEURIPS,
    ),
    "liu2019rao": Entry(
        "Liu, Runjing and Regier, Jeffrey and Tripuraneni, Nilesh and Jordan, Michael I. and McAuliffe, Jon",
        2019,
        "Rao-Blackwellized Stochastic Gradients for Discrete Distributions",
        ICML,
    ),
    "liu2023bridging": Entry(
        "Liu, Liyuan and Dong, Chengyu and Liu, Xiaodong and Yu, Bin and Gao, Jianfeng",
        2023,
        "Bridging Discrete and Backpropagation: Straight-Through and Beyond",
        NEURIPS,
    ),
    "maaloe2016auxiliary": Entry(
        r"Maal{\o}e, Lars and S{\o}nderby, Casper Kaae and S{\o}nderby, S{\o}ren Kaae and Winther, Ole",
        2016,
        "Auxiliary Deep Generative Models",
        ICML,
    ),
    "madan2023learning": Entry(
        "Madan, Kanika and Rector-Brooks, Jarrid and Korablyov, Maksym and Bengio, Emmanuel and Jain, Moksh and"
        " Nica, Andrei Cristian and Bosc, Tom and Bengio, Yoshua and Malkin, Nikolay",
        2023,
        "Learning GFlowNets from Partial Episodes for Improved Convergence and Stability",
        ICML,
    ),
    "maddison2017concrete": Entry(
        "Maddison, Chris J. and Mnih, Andriy and Teh, Yee Whye",
        2017,
        "The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables",
        ICLR,
    ),
    "maddison2017filtering": Entry(
        "Maddison, Chris J. and Lawson, Dieterich and Tucker, George and Heess, Nicolas and Norouzi, Mohammad and"
        " Mnih, Andriy and Doucet, Arnaud and Teh, Yee Whye",
        2017,
        "Filtering Variational Objectives",
        NEURIPS,
    ),
    "malkin2022trajectory": Entry(
        "Malkin, Nikolay and Jain, Moksh and Bengio, Emmanuel and Sun, Chen and Bengio, Yoshua",
        2022,
        "Trajectory Balance: Improved Credit Assignment in GFlowNets",
        NEURIPS,
    ),
    "marsaglia2000simple": Entry(
        "Marsaglia, George and Tsang, Wai Wan",
        2000,
        "A Simple Method for Generating Gamma Variables",
        _journal("ACM Transactions on Mathematical Software"),
    ),
    "masrani2019thermodynamic": Entry(
        "Masrani, Vaden and Le, Tuan Anh and Wood, Frank",
        2019,
        "The Thermodynamic Variational Objective",
        NEURIPS,
    ),
    "mnih2014neural": Entry(
        "Mnih, Andriy and Gregor, Karol",
        2014,
        "Neural Variational Inference and Learning in Belief Networks",
        ICML,
    ),
    "mnih2016variational": Entry(
        "Mnih, Andriy and Rezende, Danilo J.",
        2016,
        "Variational Inference for Monte Carlo Objectives",
        ICML,
    ),
    "mohamed2020monte": Entry(
        "Mohamed, Shakir and Rosca, Mihaela and Figurnov, Michael and Mnih, Andriy",
        2020,
        "Monte Carlo Gradient Estimation in Machine Learning",
        JMLR,
    ),
    "naesseth2015nested": Entry(
        r"Naesseth, Christian A. and Lindsten, Fredrik and Sch{\"o}n, Thomas B.",
        2015,
        "Nested Sequential Monte Carlo Methods",
        ICML,
    ),
    "naesseth2017reparameterization": Entry(
        "Naesseth, Christian A. and Ruiz, Francisco J. R. and Linderman, Scott W. and Blei, David M.",
        2017,
        "Reparameterization Gradients through Acceptance-Rejection Sampling Algorithms",
        AISTATS,
    ),
    "naesseth2018variational": Entry(
        "Naesseth, Christian A. and Linderman, Scott W. and Ranganath, Rajesh and Blei, David M.",
        2018,
        "Variational Sequential Monte Carlo",
        AISTATS,
    ),
    "neal2001annealed": Entry(
        "Neal, Radford M.", 2001, "Annealed Importance Sampling", STATISTICS_AND_COMPUTING
    ),
    "obermeyer2019tensor": Entry(
        "Obermeyer, Fritz and Bingham, Eli and Jankowiak, Martin and Pradhan, Neeraj and Chiu, Justin and"
        " Rush, Alexander and Goodman, Noah D.",
        2019,
        "Tensor Variable Elimination for Plated Factor Graphs",
        ICML,
    ),
    "pan2023better": Entry(
        "Pan, Ling and Malkin, Nikolay and Zhang, Dinghuai and Bengio, Yoshua",
        2023,
        "Better Training of GFlowNets with Local Credit and Incomplete Trajectories",
        ICML,
    ),
    "papamakarios2016fast": Entry(
        "Papamakarios, George and Murray, Iain",
        2016,
        r"Fast $\epsilon$-free Inference of Simulation Models with Bayesian Conditional Density Estimation",
        NEURIPS,
    ),
    "paulus2021rao": Entry(
        "Paulus, Max B. and Maddison, Chris J. and Krause, Andreas",
        2021,
        "Rao-Blackwellizing the Straight-Through Gumbel-Softmax Gradient Estimator",
        ICLR,
    ),
    "pflug1996optimization": Entry(
        "Pflug, Georg Ch.",
        1996,
        "Optimization of Stochastic Models: The Interface Between Simulation and Optimization",
        Venue("book", "publisher", "Kluwer Academic Publishers"),
    ),
    "phan2019composable": Entry(
        "Phan, Du and Pradhan, Neeraj and Jankowiak, Martin",
        2019,
        "Composable Effects for Flexible and Accelerated Probabilistic Programming in NumPyro",
        ARXIV,
    ),
    "rainforth2018tighter": Entry(
        "Rainforth, Tom and Kosiorek, Adam R. and Le, Tuan Anh and Maddison, Chris J. and Igl, Maximilian and"
        " Wood, Frank and Teh, Yee Whye",
        2018,
        "Tighter Variational Bounds are Not Necessarily Better",
        ICML,
    ),
    "ranganath2014black": Entry(
        "Ranganath, Rajesh and Gerrish, Sean and Blei, David M.",
        2014,
        "Black Box Variational Inference",
        AISTATS,
    ),
    "ranganath2016hierarchical": Entry(
        "Ranganath, Rajesh and Tran, Dustin and Blei, David M.",
        2016,
        "Hierarchical Variational Models",
        ICML,
    ),
    "richter2020vargrad": Entry(
        r"Richter, Lorenz and Boustati, Ayman and N{\"u}sken, Nikolas and Ruiz, Francisco J. R. and"
        r" Akyildiz, {\"O}mer Deniz",
        2020,
        "VarGrad: A Low-Variance Gradient Estimator for Variational Inference",
        NEURIPS,
    ),
    "richter2024improved": Entry(
        "Richter, Lorenz and Berner, Julius",
        2024,
        "Improved Sampling via Learned Diffusions",
        ICLR,
    ),
    "robert1995simulation": Entry(
        "Robert, Christian P.",
        1995,
        "Simulation of Truncated Normal Variables",
        STATISTICS_AND_COMPUTING,
    ),
    "roeder2017sticking": Entry(
        "Roeder, Geoffrey and Wu, Yuhuai and Duvenaud, David",
        2017,
        "Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference",
        NEURIPS,
    ),
    "rubin1988using": Entry(
        "Rubin, Donald B.",
        1988,
        "Using the SIR Algorithm to Simulate Posterior Distributions",
        _proceedings("Bayesian Statistics 3"),
    ),
    "ruiz2016generalized": Entry(
        "Ruiz, Francisco J. R. and Titsias, Michalis K. and Blei, David M.",
        2016,
        "The Generalized Reparameterization Gradient",
        NEURIPS,
    ),
    "shao2025zero": Entry(
        "Shao, Zilei and Liu, Anji and Van den Broeck, Guy",
        2025,
        "Zero-Variance Gradients for Variational Autoencoders",
        ARXIV,
    ),
    "sobolev2019importance": Entry(
        "Sobolev, Artem and Vetrov, Dmitry",
        2019,
        "Importance Weighted Hierarchical Variational Inference",
        NEURIPS,
    ),
    "thin2021monte": Entry(
        "Thin, Achille and Kotelevskii, Nikita and Doucet, Arnaud and Durmus, Alain and Moulines, Eric and"
        " Panov, Maxim",
        2021,
        "Monte Carlo Variational Auto-Encoders",
        ICML,
    ),
    "titsias2015local": Entry(
        r"Titsias, Michalis K. and L{\'a}zaro-Gredilla, Miguel",
        2015,
        "Local Expectation Gradients for Black Box Variational Inference",
        NEURIPS,
    ),
    "tucker2017rebar": Entry(
        "Tucker, George and Mnih, Andriy and Maddison, Chris J. and Lawson, Dieterich and Sohl-Dickstein, Jascha",
        2017,
        "REBAR: Low-variance, Unbiased Gradient Estimates for Discrete Latent Variable Models",
        NEURIPS,
    ),
    "tucker2019doubly": Entry(
        "Tucker, George and Lawson, Dieterich and Gu, Shixiang and Maddison, Chris J.",
        2019,
        "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives",
        ICLR,
    ),
    "wan2020f": Entry(
        "Wan, Neng and Li, Dapeng and Hovakimyan, Naira",
        2020,
        "f-Divergence Variational Inference",
        NEURIPS,
    ),
    "wang2018variational": Entry(
        "Wang, Dilin and Liu, Hao and Liu, Qiang",
        2018,
        "Variational Inference with Tail-adaptive f-Divergence",
        NEURIPS,
    ),
    "williams1992simple": Entry(
        "Williams, Ronald J.",
        1992,
        "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
        MACHINE_LEARNING,
    ),
    "yin2018semi": Entry(
        "Yin, Mingzhang and Zhou, Mingyuan", 2018, "Semi-Implicit Variational Inference", ICML
    ),
    "yin2019arm": Entry(
        "Yin, Mingzhang and Zhou, Mingyuan",
        2019,
        "ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks",
        ICLR,
    ),
    "zhang2021differentiable": Entry(
        "Zhang, Guodong and Hsu, Kyle and Li, Jianing and Finn, Chelsea and Grosse, Roger",
        2021,
        "Differentiable Annealed Importance Sampling and the Perils of Gradient Noise",
        NEURIPS,
    ),
    "zhang2025design": Entry(
        "Zhang, Yifan and others",
        2025,
        "On the Design of KL-Regularized Policy Gradient Algorithms for LLM Reasoning",
        ARXIV,
    ),
    "zhou2025variational": Entry(
        "Zhou, Xiangxin and others", 2025, "Variational Reasoning for Language Models", ARXIV
    ),
}

SOURCES = {
    "Pyro": ("bingham2019pyro",),
    "NumPyro": ("phan2019composable",),
    # objectives, by their programs
    "elbo": ("jordan1999introduction",),
    "iwae": ("burda2016importance",),
    "miwae": ("rainforth2018tighter",),
    "piwae": ("rainforth2018tighter",),
    "ciwae": ("rainforth2018tighter",),
    "renyi": ("li2016renyi",),
    "cubo": ("dieng2017variational",),
    "thermodynamic": ("masrani2019thermodynamic",),
    "log_variance": ("richter2020vargrad", "richter2024improved"),
    "trajectory_balance": ("malkin2022trajectory", "richter2024improved"),
    "sub_trajectory_balance": ("madan2023learning", "pan2023better"),
    "f_divergence": ("wan2020f",),
    "tail_adaptive": ("wang2018variational",),
    "wake_sleep": ("bornschein2015reweighted", "naesseth2015nested", "le2020revisiting"),
    "forward_kl": ("hinton1995wake", "papamakarios2016fast"),
    "eubo": ("ji2019stochastic", "blessing2024beyond"),
    "multi_trace": ("zhou2025variational",),
    "expected_reward": ("zhang2025design",),
    # estimators
    "Reparam": ("kingma2014auto", "figurnov2018implicit"),
    "DoublyReparam": ("roeder2017sticking", "tucker2019doubly", "bauer2021generalized"),
    "MixtureReparam": ("graves2016stochastic", "figurnov2018implicit"),
    "RejectionReparam": (
        "naesseth2017reparameterization",
        "marsaglia2000simple",
        "best1979efficient",
        "robert1995simulation",
    ),
    "GeneralizedReparam": ("ruiz2016generalized",),
    "Analytic": ("shao2025zero", "ranganath2014black"),
    "Score": ("williams1992simple",),
    "Enumerate": ("titsias2015local",),
    "MeasureValued": ("pflug1996optimization", "mohamed2020monte", "arratia2019size"),
    "Quadrature": ("golub1969calculation", "arasaratnam2009cubature"),
    "DisARM": ("yin2019arm", "dong2020disarm", "dong2021coupled"),
    "SumAndSample": ("liu2019rao",),
    "WithoutReplacement": ("kool2020estimating",),
    "Rebar": ("tucker2017rebar",),
    "Relax": ("grathwohl2018backpropagation",),
    "Relaxed": ("jang2017categorical", "maddison2017concrete", "paulus2021rao"),
    "StraightThrough": ("bengio2013estimating", "liu2023bridging"),
    "Annealed": ("shao2025zero",),
    # baselines
    "LearnedConstant": ("richter2020vargrad",),
    "LeaveOneOut": ("kool2019buy", "mnih2016variational"),
    "NeuralBaseline": ("mnih2014neural",),
    # programs made of programs, and their algorithms
    "marginal": ("becker2024probabilistic",),
    "normalize": ("becker2024probabilistic",),
    "Exact": ("obermeyer2019tensor",),
    "ImportanceSampling": (
        "ranganath2016hierarchical",
        "yin2018semi",
        "maaloe2016auxiliary",
        "sobolev2019importance",
        "becker2024probabilistic",
    ),
    "SIR": ("rubin1988using", "cremer2017reinterpreting"),
    "SMC": (
        "maddison2017filtering",
        "naesseth2018variational",
        "le2018auto",
        "andrieu2010particle",
    ),
    "AIS": ("neal2001annealed", "thin2021monte", "geffner2021mcmc", "doucet2022score"),
    "Langevin": ("thin2021monte",),
    "Hamiltonian": ("geffner2021mcmc", "zhang2021differentiable"),
}
"""The keys of what each takes from the literature, by the name that vi_kit exports."""
