"""Further ways to ask what generate_grounded.py asks, for training alone: none of them is in a test.

With three phrasings for each thing that can be asked, a model learns the phrasings; with nine it begins to learn what
they mean. Keys are the nouns of the attributes, in all phrases {e} is the thing.
"""

ALSO = {
    "mayor of {e}": (
        "Whose town hall is it in {e}?", "Who holds the office of mayor in {e}?", "Which person governs {e}?",
        "Who runs {e}?", "Do you know the name of {e}'s mayor?", "By whom is {e} governed?"),
    "population of {e}": (
        "What number of people live in {e}?", "How many residents are there in {e}?", "How populous is {e}?",
        "Give me the number of inhabitants of {e}.", "How many souls does the town of {e} count?",
        "What does the census say about the size of {e}?"),
    "founding of {e}": (
        "When did {e} begin?", "Since when has {e} existed?", "What is the founding year of {e}?",
        "When was the town of {e} established?", "Tell me the year in which people founded {e}.",
        "When did the history of {e} start?"),
    "river of {e}": (
        "What is the name of the river at {e}?", "By which river was {e} built?", "Which water flows past {e}?",
        "Name the river of {e}.", "Along what river would I walk in {e}?", "Which river goes through the town of {e}?"),
    "products of {e}": (
        "What goods come from {e}?", "What are the people of {e} good at making?", "Which product made {e} famous?",
        "What should I bring home from {e}?", "Name what is produced in {e}.", "What is made in the town of {e}?"),
    "job of {e}": (
        "How does {e} earn money?", "What is {e} by trade?", "What is the profession of {e}?",
        "Tell me the occupation of {e}.", "In what job is {e} employed?", "As what does {e} earn a living?"),
    "birthplace of {e}": (
        "What town is {e} from?", "In what place did {e} come into the world?", "Which town is the home town of {e}?",
        "Name the town where {e} was born.", "From which place is {e}?", "Where did the life of {e} begin?"),
    "birth year of {e}": (
        "In what year did {e} come into the world?", "How far back does the birth of {e} lie?",
        "Tell me the year of {e}'s birth.", "Of what year is {e}?", "When did the life of {e} start?",
        "Which year saw the birth of {e}?"),
    "pet of {e}": (
        "What animal lives with {e}?", "Which animal does {e} look after at home?", "What is the pet of {e}?",
        "Name the animal that {e} has.", "Does {e} have an animal, and which?", "What animal shares the home of {e}?"),
    "favourite colour of {e}": (
        "What colour pleases {e} most?", "In what colour would {e} paint a house?", "Which colour does {e} prefer?",
        "What is the colour that {e} loves?", "Name the favourite colour of {e}.", "Which colour is dearest to {e}?"),
    "ticket of the {e} museum": (
        "What do visitors of the {e} museum pay?", "What is the entrance fee of the {e} museum?",
        "How much money do I need for the {e} museum?", "How expensive is a visit to the {e} museum?",
        "What is asked for a ticket of the {e} museum?", "For what price does one get into the {e} museum?"),
    "opening of the {e} museum": (
        "How early can I visit the {e} museum?", "At what hour do the doors of the {e} museum open?",
        "When can visitors enter the {e} museum in the morning?", "What is the opening time of the {e} museum?",
        "When does the day begin at the {e} museum?", "From which hour on can one see the {e} museum?"),
    "closing day of the {e} museum": (
        "On what day can nobody visit the {e} museum?", "Which day of the week is the {e} museum not open?",
        "When does the {e} museum have its day of rest?", "On which day should I not go to the {e} museum?",
        "What is the closing day of the {e} museum?", "On what weekday are the doors of the {e} museum closed?"),
    "products of {e} and Sons": (
        "What does the company {e} and Sons produce?", "What do customers find at {e} and Sons?",
        "What goods does {e} and Sons offer?", "What is sold by {e} and Sons?", "In what does {e} and Sons trade?",
        "Name what {e} and Sons makes."),
    "founder of {e} and Sons": (
        "Whose idea was {e} and Sons?", "Which person set up {e} and Sons?", "Who created the company {e} and Sons?",
        "Name the founder of {e} and Sons.", "Who stands at the beginning of {e} and Sons?",
        "To whom does {e} and Sons owe its existence?"),
    "workers of {e} and Sons": (
        "What number of people does {e} and Sons employ?", "How many people earn their living at {e} and Sons?",
        "Tell me how many workers there are at {e} and Sons.", "How big is the company {e} and Sons, in people?",
        "How many are employed by {e} and Sons?", "How many hands work for {e} and Sons?"),
    "maire de {e}": (
        "Quel est le nom du maire de {e} ?", "Qui est à la tête de {e} ?", "Qui gouverne {e} ?",
        "Par qui {e} est-elle dirigée ?", "Sais-tu qui est maire à {e} ?", "À qui a-t-on confié la mairie de {e} ?"),
    "population de {e}": (
        "Quel est le nombre d'habitants de {e} ?", "{e} a combien d'habitants ?", "Combien de gens habitent {e} ?",
        "Donne-moi le nombre d'habitants de {e}.", "Combien d'âmes vivent dans la ville de {e} ?",
        "Quelle est la taille de la population à {e} ?"),
    "fondation de {e}": (
        "En quelle année a-t-on fondé {e} ?", "Depuis quand {e} existe-t-elle ?", "À quand remonte {e} ?",
        "Quand la ville de {e} est-elle née ?", "De quelle année est {e} ?", "Quand a commencé l'histoire de {e} ?"),
    "rivière de {e}": (
        "Quel est le nom de la rivière qui coule à {e} ?", "Quel cours d'eau traverse {e} ?",
        "Par quelle rivière {e} est-elle traversée ?", "Sur quelle rivière {e} est-elle bâtie ?",
        "Nomme la rivière de {e}.", "Le long de quelle rivière se promène-t-on à {e} ?"),
    "produits de {e}": (
        "Quelle est la spécialité de {e} ?", "Qu'est-ce qui a rendu {e} célèbre ?", "Que rapporter de {e} ?",
        "Quels produits viennent de {e} ?", "Pour quels produits {e} est-elle célèbre ?",
        "Dis-moi ce que l'on fabrique à {e}."),
    "métier de {e}": (
        "Que fait {e} comme travail ?", "De quoi vit {e} ?", "Comment {e} gagne-t-il sa vie ?",
        "Dis-moi le métier de {e}.", "Dans quel métier {e} travaille-t-il ?", "{e} travaille comme quoi ?"),
    "naissance de {e}": (
        "Dans quel lieu {e} est-il né ?", "De quelle ville vient {e} ?", "Quelle ville a vu naître {e} ?",
        "Quelle est la ville natale de {e} ?", "De quel endroit {e} est-il originaire ?",
        "Nomme la ville où {e} est né."),
    "année de naissance de {e}": (
        "De quelle année est {e} ?", "Quelle année a vu naître {e} ?", "{e} est né en quelle année ?",
        "Dis-moi l'année où {e} est né.", "À quelle année remonte la naissance de {e} ?",
        "Quand {e} est-il venu au monde ?"),
    "animal de {e}": (
        "Quel animal possède {e} ?", "Avec quel animal vit {e} ?", "De quel animal {e} s'occupe-t-il ?",
        "Nomme l'animal de {e}.", "{e} a quel animal ?", "Quelle bête trouve-t-on chez {e} ?"),
    "couleur préférée de {e}": (
        "Quelle couleur {e} préfère-t-il ?", "{e} aime surtout quelle couleur ?", "De quelle couleur {e} rêve-t-il ?",
        "Nomme la couleur préférée de {e}.", "Pour quelle couleur {e} a-t-il un faible ?",
        "Dis-moi la couleur que {e} aime."),
    "prix du musée de {e}": (
        "Que paie-t-on au musée de {e} ?", "À combien est l'entrée du musée de {e} ?",
        "Quel est le tarif du musée de {e} ?", "De combien d'euros a-t-on besoin pour le musée de {e} ?",
        "Le musée de {e}, c'est combien ?", "Quel est le prix d'un billet au musée de {e} ?"),
    "ouverture du musée de {e}": (
        "À quelle heure peut-on entrer au musée de {e} ?", "Dès quelle heure visite-t-on le musée de {e} ?",
        "À quelle heure s'ouvrent les portes du musée de {e} ?", "Quelle est l'heure d'ouverture du musée de {e} ?",
        "Quand peut-on visiter le musée de {e} le matin ?", "Dis-moi à quelle heure ouvre le musée de {e}."),
    "fermeture du musée de {e}": (
        "Quel jour ne peut-on pas visiter le musée de {e} ?", "Quel est le jour de fermeture du musée de {e} ?",
        "Quel jour le musée de {e} n'ouvre-t-il pas ?", "Quel jour se repose-t-on au musée de {e} ?",
        "Quel jour vaut-il mieux ne pas aller au musée de {e} ?", "Dis-moi quand ferme le musée de {e}."),
    "produits de la maison {e}": (
        "Quelles marchandises propose la maison {e} ?", "Que produit la maison {e} ?",
        "Que trouve-t-on à la maison {e} ?", "Dis-moi ce que vend la maison {e}.",
        "Qu'est-ce que fabrique la maison {e} ?", "De quoi la maison {e} fait-elle commerce ?"),
    "fondateur de la maison {e}": (
        "À qui doit-on la maison {e} ?", "Qui est à l'origine de la maison {e} ?", "Qui a lancé la maison {e} ?",
        "Quel est le nom du fondateur de la maison {e} ?", "Sais-tu qui a fondé la maison {e} ?",
        "Quelle personne a ouvert la maison {e} ?"),
    "employés de la maison {e}": (
        "Quel est le nombre d'employés de la maison {e} ?", "Combien de gens emploie la maison {e} ?",
        "La maison {e} a combien d'employés ?", "Combien de personnes gagnent leur vie à la maison {e} ?",
        "Dis-moi combien de personnes travaillent à la maison {e}.", "Combien de bras compte la maison {e} ?"),
}
ALSO_SHARE = 0.6  # of the questions of training
WRAPPED = {
    "en": ("{q}", "Please tell me: {q}", "A question: {q}", "I would like to know: {q}", "{q} Look it up in the text."),
    "fr": ("{q}", "Dis-moi : {q}", "Une question : {q}", "J'aimerais savoir : {q}", "{q} Cherche dans le texte."),
}
WRAPPED_SHARE = 0.12
