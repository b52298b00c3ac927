"""The words of the demo's small world: what a delivery note can name, and how people really write it.

Every table maps what the answer says to the spellings that notes use. A spelling belongs to one answer only, so a note
never has two right readings. Weights in pounds follow the trade's rough rule of 2.2 lbs to the kilogram and come as
multiples of 11, which makes them whole kilograms; numbers may carry a decimal comma.
"""

from __future__ import annotations

CITIES = {
    "Munich": ("Munich", "München", "Muenchen", "Munchen", "Munich"),
    "Vienna": ("Vienna", "Wien", "Wien", "Vienne"),
    "Cologne": ("Cologne", "Köln", "Koeln", "Koln"),
    "Rome": ("Rome", "Roma", "Rom"),
    "Prague": ("Prague", "Praha", "Prag"),
    "Milan": ("Milan", "Milano", "Mailand"),
    "Warsaw": ("Warsaw", "Warszawa", "Warschau"),
    "Lisbon": ("Lisbon", "Lisboa", "Lissabon"),
    "Copenhagen": ("Copenhagen", "København", "Kopenhagen", "Kobenhavn"),
    "Geneva": ("Geneva", "Genève", "Genf", "Geneve"),
    "Zurich": ("Zurich", "Zürich", "Zuerich"),
    "Brussels": ("Brussels", "Bruxelles", "Brüssel", "Brussel"),
    "Florence": ("Florence", "Firenze", "Florenz"),
    "Venice": ("Venice", "Venezia", "Venedig"),
    "Naples": ("Naples", "Napoli", "Neapel"),
    "Nuremberg": ("Nuremberg", "Nürnberg", "Nuernberg"),
    "Antwerp": ("Antwerp", "Antwerpen", "Anvers"),
    "Seville": ("Seville", "Sevilla"),
    "Gothenburg": ("Gothenburg", "Göteborg", "Goteborg"),
    "Lyon": ("Lyon", "Lyons"),
    "Hamburg": ("Hamburg", "Hambourg"),
    "Paris": ("Paris", "Parigi"),
}

CARRIERS = {
    "DHL": ("DHL", "D.H.L.", "dhl", "DHL Express"),
    "UPS": ("UPS", "ups", "U.P.S.", "United Parcel"),
    "FedEx": ("FedEx", "Fed Ex", "fedex", "Fed-Ex", "FEDEX"),
    "DPD": ("DPD", "dpd", "D.P.D."),
    "GLS": ("GLS", "gls", "G.L.S."),
    "TNT": ("TNT", "tnt", "T.N.T."),
    "Hermes": ("Hermes", "hermes", "HERMES"),
    "Schenker": ("Schenker", "DB Schenker", "schenker", "Shenker"),
    "Dachser": ("Dachser", "dachser", "Daxer"),
}

PREFIXES = ("PO", "SO", "DN", "RK", "TB", "VA", "HM", "LX")

MONTHS = (
    ("January", "Jan", "Januar"), ("February", "Feb", "Februar"), ("March", "Mar", "März"), ("April", "Apr", "April"),
    ("May", "May", "Mai"), ("June", "Jun", "Juni"), ("July", "Jul", "Juli"), ("August", "Aug", "August"),
    ("September", "Sep", "September"), ("October", "Oct", "Oktober"), ("November", "Nov", "November"),
    ("December", "Dec", "Dezember"),
)  # fmt: skip

PRIORITIES = {
    "high": ("urgent", "asap", "ASAP", "express please", "rush", "very urgent", "URGENT!!", "dringend", "top priority",
             "high prio", "as soon as possible", "cannot wait", "eilig"),
    "low": ("no hurry", "no rush", "not urgent", "whenever you can", "low prio", "it can wait", "kein Stress", "take your time",
            "nicht eilig", "low priority"),
    "normal": ("normal", "standard", "usual speed", "normal prio", "regular"),
}  # fmt: skip

LABELS = {
    "order": ("Order", "Order no", "Ref", "Ord.", "Bestellung", "No.", "our ref"),
    "carrier": ("Carrier", "Via", "Haulier", "Shipper", "By", "Spedition"),
    "weight_kg": ("Weight", "Wt", "Gross", "Gewicht", "Weigth", "gross wt"),
    "city": ("To", "Ship to", "Dest", "Destination", "City", "Deliver to", "Nach"),
    "date": ("Date", "Due", "Delivery", "ETA", "Deliver on", "Termin", "Delivry"),
    "priority": ("Prio", "Priority", "Speed", "Note", "Remark"),
}

CLAUSES = {
    "order": ("order {}", "this is {}", "ref {}", "it is about {}", "our no. {}", "re {}"),
    "carrier": ("by {}", "with {}", "via {}", "{} picks it up", "carrier is {}", "{} will take it"),
    "weight_kg": ("{}", "weighs {}", "about {}", "total {}", "{} in all", "{} gross"),
    "city": ("to {}", "for {}", "going to {}", "goods for our shop in {}", "destination {}", "the client in {}"),
    "date": ("on {}", "due {}", "by {}", "must arrive {}", "needed {}", "delivery {}"),
    "priority": ("{}", "{}", "it is {}", "{} this time"),
}

SENTENCES = (
    "Please send {order} to {city} with {carrier}, {weight_kg}, due {date}.",
    "Can you get {order} ({weight_kg}) to {city} by {date}? {carrier} as usual.",
    "We booked {carrier} for {order}: {weight_kg} to {city}, arriving {date}.",
    "{carrier} collects {weight_kg} for {city}, order {order}, delivery {date}.",
    "On {date} our client in {city} expects {order}, {weight_kg}, shipped via {carrier}.",
    "{city} wants {order} on {date}. It weighs {weight_kg} and goes with {carrier}.",
    "Shipment {order} of {weight_kg} leaves with {carrier} and must be in {city} on {date}.",
    "Pls arrange {carrier} for {city}: {order}, gross {weight_kg}, needed {date}.",
)

GREETINGS = ("Hi,", "Hello team,", "Hallo,", "hi there", "Dear all,", "Good morning,", "FYI:", "Moin,")
CLOSINGS = ("Thanks, Ana", "thx", "Regards, Tom", "Best, Mia", "Danke!", "Grüße, Jan", "sent from my phone", "BR Eva", "cheers")
ASIDES = (
    "3 pallets", "gate 4", "2 boxes", "call first", "fragile", "no stacking", "ask for Tom", "dock 12", "5 crates", "see invoice",
)  # fmt: skip
TYPOS = (
    ("Please", "Plese"), ("delivery", "delivry"), ("order", "oder"), ("arrange", "arange"), ("weighs", "weights"),
    ("client", "cleint"), ("expects", "expcts"), ("collects", "colects"), ("needed", "neded"), ("shipped", "shiped"),
)  # fmt: skip
